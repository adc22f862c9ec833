"""Muon beside optax.contrib.muon, and what each way to orthogonalise costs and gives.

Three tables, all in float32 with five steps of the same polynomial:

    layers     48 layers of separate leaves (64x64, 64x256, 256x64): lines of HLO, seconds to trace and compile, median
               step of both optimizers
    matrices   one matrix at a time: median step of both, and how far singular values are from 1
    methods    every table of coefficients: error against the polar factor, and FLOPs as a multiple of those of Muon's
               five steps; on Gaussian matrices and on matrices whose singular values span three decades

Steps of the two optimizers are timed in turns, in one process, and medians compared. Counts do not vary; times do:
a time counts as missed only beyond its bar plus 15 %.

    python benchmarks/orthogonalize.py
    python benchmarks/orthogonalize.py --only methods
    python benchmarks/orthogonalize.py --out results.json

Prints JSON. Runs on the device that JAX finds, a CPU or a GPU. Exit code 0: every bar is kept (bars of times hold for a
CPU). 1: a bar is missed, and stderr names it. 2: bad arguments.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import muon as optax_muon

import momentax
from momentax import linalg, telemetry

STEPS = 5
NOISE = 1.15
LAYERS = {
    f"layer_{i}": {"square": {"kernel": (64, 64)}, "up": {"kernel": (64, 256)}, "down": {"kernel": (256, 64)}}
    for i in range(48)
}
LAYER_BARS = {"hlo_lines": 0.11, "trace_and_compile_s": 0.5, "step_ms": 0.55}
MATRIX_BARS = {(768, 768): 1.05, (768, 2304): 0.85, (768, 3072): 0.75}
METHODS = [  # name of the table, steps, normalisation
    ("muon", 5, "frobenius"),
    ("you", 5, "frobenius"),
    ("aol", 4, "aol"),
    ("polar_express", 5, "frobenius"),
    ("polar_express", 5, "schatten"),
    ("polar_express", 6, "frobenius"),
    ("polar_express", 8, "frobenius"),
    ("cans", 8, "frobenius"),
    ("cans", 10, "frobenius"),
    ("classical", 5, "frobenius"),
    ("classical", 10, "frobenius"),
    ("classical", 15, "frobenius"),
]
SHAPE = (128, 512)

OPTIMIZERS = {
    "momentax": lambda: momentax.muon(1e-3, steps=STEPS, precision=None),
    "optax": lambda: optax_muon(1e-3, ns_steps=STEPS),
}


def normal(shapes: Any, seed: int) -> Any:
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda node: isinstance(node, tuple))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(treedef, [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in leaves])


class Step:
    """A compiled optimizer step on some parameters; each call of `run` takes one and returns the seconds."""

    def __init__(self, tx: optax.GradientTransformation, shapes: Any):
        self.params, self.grads = normal(shapes, 0), normal(shapes, 1)
        self.state = jax.jit(tx.init)(self.params)

        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.tx, self.shapes = tx, shapes
        start = time.perf_counter()
        self.compiled = jax.jit(step).lower(self.params, self.state, self.grads).compile()
        self.build_s = time.perf_counter() - start
        self.hlo_lines = len(self.compiled.as_text().splitlines())

    def first_updates(self) -> Any:
        """What the optimizer adds to the parameters in its first step."""
        params, grads = normal(self.shapes, 0), normal(self.shapes, 1)
        return jax.jit(self.tx.update)(grads, self.tx.init(params), params)[0]

    def run(self) -> float:
        start = time.perf_counter()
        self.params, self.state = jax.block_until_ready(self.compiled(self.params, self.state, self.grads))
        return time.perf_counter() - start


def side_by_side(shapes: Any, repeats: int) -> tuple[dict[str, Step], dict[str, float]]:
    """Both optimizers on the same parameters, and the median step of each, run in turns."""
    steps = {name: Step(build(), shapes) for name, build in OPTIMIZERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 3):
        for name, step in steps.items():
            seconds[name].append(step.run())
    return steps, {name: statistics.median(times[3:]) for name, times in seconds.items()}


def compared(name: str, unit: str, ours: float, theirs: float, bar: float, timed: bool) -> dict[str, Any]:
    ratio = ours / theirs
    return {
        "name": f"{name}, {unit}",
        "momentax": round(ours, 4),
        "optax": round(theirs, 4),
        "ratio": round(ratio, 3),
        "bar": bar,
        "within_bar": ratio <= bar * (NOISE if timed else 1),
    }


def layers(repeats: int) -> list[dict[str, Any]]:
    steps, medians = side_by_side(LAYERS, repeats)
    ours, theirs = steps["momentax"], steps["optax"]
    pairs = {
        "hlo_lines": (ours.hlo_lines, theirs.hlo_lines),
        "trace_and_compile_s": (ours.build_s, theirs.build_s),
        "step_ms": (1e3 * medians["momentax"], 1e3 * medians["optax"]),
    }
    return [
        compared("48 layers", unit, *pair, LAYER_BARS[unit], timed=unit != "hlo_lines") for unit, pair in pairs.items()
    ]


def matrices(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for shape, bar in MATRIX_BARS.items():
        steps, medians = side_by_side({"kernel": shape}, repeats)
        name = "x".join(map(str, shape))
        rows.append(compared(name, "step_ms", 1e3 * medians["momentax"], 1e3 * medians["optax"], bar, timed=True))
        errors = {key: orthogonality_error(step.first_updates()["kernel"]) for key, step in steps.items()}
        rows.append(compared(name, "orthogonality error", errors["momentax"], errors["optax"], 1.001, timed=False))
    return rows


def orthogonality_error(update: jax.Array) -> float:
    """Largest distance of a singular value from 1, the learning rate and the factor of the shape taken out."""
    values = np.linalg.svd(np.asarray(update, np.float64), compute_uv=False) / 1e-3
    return float(np.abs(1 - values / np.sqrt(max(1, update.shape[1] / update.shape[0]))).max())


def flops(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> int:
    """Of the matrix products in a function, those in loops as often as the loop runs."""
    return telemetry.count(jax.jit(function).lower(x).compile()).flops


def methods() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    gaussian = rng.standard_normal(SHAPE)
    u, _, v_t = np.linalg.svd(gaussian, full_matrices=False)
    inputs = {"gaussian": (gaussian, u @ v_t), "three_decades": ((u * np.logspace(0, -3, len(u))) @ v_t, u @ v_t)}
    rows = []
    reference = flops(lambda x: linalg.newton_schulz(x, 5, "muon"), jnp.zeros(SHAPE))
    for name, steps, normalize in METHODS:
        row = {"name": name, "steps": steps, "normalize": normalize}
        for form in ("standard", "gram"):

            def factor(x, name=name, steps=steps, normalize=normalize, form=form):
                return linalg.newton_schulz(x, steps, name, normalize=normalize, form=form)

            row[f"flops_{form}"] = round(flops(factor, jnp.zeros(SHAPE)) / reference, 3)
            for kind, (x, polar) in inputs.items():
                y = np.asarray(jax.jit(factor)(jnp.asarray(x, jnp.float32)), np.float64)
                row[f"error_{kind}_{form}"] = float(f"{np.linalg.norm(y - polar) / np.linalg.norm(polar):.2g}")
        rows.append(row)
    return rows


def gram_flops() -> list[dict[str, Any]]:
    """FLOPs of the Gram form, counted by the compiler, beside 8 m^2 n + (8 T - 12) m^3."""
    rows = []
    for m, n in ((256, 1024), (128, 1024)):
        compiled = (
            jax.jit(lambda x: linalg.newton_schulz(x, STEPS, "muon", form="gram")).lower(jnp.zeros((m, n))).compile()
        )
        counted, formula = compiled.cost_analysis()["flops"], 8 * m * m * n + (8 * STEPS - 12) * m**3
        rows.append(
            {
                "name": f"Gram form, {m}x{n}, FLOPs",
                "compiler": counted,
                "formula": formula,
                "ratio": round(counted / formula, 4),
                "bar": 1.02,
                "within_bar": abs(counted / formula - 1) <= 0.02,
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {
        "layers": lambda: layers(arguments.repeats),
        "matrices": lambda: matrices(arguments.repeats),
        "gram": gram_flops,
        "methods": methods,
    }
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(parts)}; default: all")
    parser.add_argument("--repeats", type=int, default=25, help="steps of which the median is taken")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the JSON to this new file, too")
    parser.add_argument("--force", action="store_true", help="let --out overwrite a file")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(parts)
    if unknown := [name for name in names if name not in parts]:
        parser.error(f"--only: no part is called {', '.join(unknown)}; the parts are {', '.join(parts)}")
    if arguments.repeats < 1:
        parser.error(f"--repeats: at least one step is needed; got {arguments.repeats}")
    if arguments.out and not arguments.out.parent.is_dir():
        parser.error(f"--out: there is no folder {arguments.out.parent}; create it first")
    if arguments.out and arguments.out.exists() and not arguments.force:
        parser.error(f"--out: {arguments.out} exists; choose another name, or add --force to overwrite it")

    device = jax.devices()[0]
    results = {name: parts[name]() for name in names}
    versions = {library: importlib.metadata.version(library) for library in ("jax", "jaxlib", "optax")}
    text = json.dumps(
        {
            "versions": {**versions, "momentax": momentax.__version__, "python": platform.python_version()},
            "device": f"{device.platform}, {device.device_kind}",
            **results,
        },
        indent=2,
    )
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)
    timed_here = device.platform == "cpu"
    missed = [
        row
        for rows in results.values()
        for row in rows
        if not row.get("within_bar", True) and (timed_here or not row["name"].endswith(("_ms", "_s")))
    ]
    for row in missed:
        print(f"{row['name']}: {row['ratio']} of the other, bar {row['bar']}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
