"""The step of Muon on whole TPU pods, compiled and counted without one, beside optax.contrib.muon and optax.adamw.

Each case compiles the optimizer's update alone, from sharded gradients to sharded updates and state, gradients and
state donated, in a process of its own. It needs the compiler, `pip install -e ".[tpu-aot]"`, and no TPU. Counts are
of `momentax.telemetry.count`: collectives and FLOPs of loops as often as these run, bytes that a device receives in the
best algorithm. They are the same in every run, and no timings; seconds of compilation are this machine's.

    comparison   two models on three pods, sharded over one mesh axis (fsdp) and over two (fsdp,tensor)
    scaling      our Muon from 8 chips to 512
    separate     the larger model with a leaf for each matrix; only when asked for, as it takes long to compile

`flops_over_ideal` is FLOPs on the busiest device, relative to T (4 m^2 n + 2 m^3) for each matrix m x n, m <= n, dealt
evenly. A matrix is computed whole on one device: with fewer matrices than devices the best that can be is above 1, and
`best_flops_over_ideal` says what it is. Products take JAX's precision, as those of optax do; with precision="high"
long matrices would take the Gram form, with fewer FLOPs.

    python benchmarks/pod.py
    python benchmarks/pod.py --only scaling
    python benchmarks/pod.py --out results.json
    python benchmarks/pod.py --table results.json
    python benchmarks/pod.py --plot results.json scaling.png
    python benchmarks/pod.py --check

Prints JSON; --table prints Markdown. Exit code 0: done, and with --check every bar is kept. 1: a bar is missed, and
stderr names it. 2: bad arguments, or no compiler to measure with.
"""

import argparse
import fcntl
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to wait for
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_WORKER_ID", "0")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # its lock guards a TPU; this program opens none

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import momentax
from momentax.telemetry import count

STEPS = 5
WORD = 4  # bytes of a float32


class Model(NamedTuple):
    """`kernels`: shapes of the matrices of a layer. `stacked`: whether all layers of a kernel are one leaf, as scanned
    layers are."""

    layers: int
    kernels: dict[str, tuple[int, int]]
    stacked: bool = False


SMALL = {"first": (1024, 3072), "second": (1024, 1024), "up": (1024, 4096), "down": (4096, 1024)}
LARGE = {
    **{name: (4096, 4096) for name in ("query", "key", "value", "out")},
    **{name: (4096, 11008) for name in ("gate", "up")},
    "down": (11008, 4096),
}
MODELS = {
    "16 layers, d=1024": Model(16, SMALL),
    "8 layers, d=1024": Model(8, SMALL),
    "16 matrices, 1024x4096": Model(16, {"up": (1024, 4096)}),
    "64 layers, d=1024": Model(64, SMALL),
    "7B, scanned": Model(32, LARGE, stacked=True),
    "7B, separate": Model(32, LARGE),
}
PODS = {"v5e:4x4": (4, 4), "v5p:4x4x4": (16, 4), "v5p:8x8x8": (64, 8)}  # devices along the axes fsdp and tensor
CURVE = ["v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4", "v5p:4x4x4", "v5p:4x4x8", "v5p:4x8x8", "v5p:8x8x8"]
OPTIMIZERS = ("momentax.muon", "optax.contrib.muon", "optax.adamw")


class Case(NamedTuple):
    """`sharding`: the mesh axes over which the rows and the columns of each matrix lie."""

    model: str
    topology: str
    mesh: tuple[int, ...]
    sharding: str
    optimizer: str


def chips(topology: str) -> int:
    return math.prod(map(int, topology.split(":")[1].split("x")))


def comparison() -> list[Case]:
    return [
        Case(model, pod, mesh if "," in sharding else (chips(pod),), sharding, optimizer)
        for model in ("16 layers, d=1024", "7B, scanned")
        for pod, mesh in PODS.items()
        for sharding in ("fsdp", "fsdp,tensor")
        for optimizer in OPTIMIZERS
    ]


def scaling() -> list[Case]:
    models = "64 layers, d=1024", "7B, scanned"
    return [Case(model, pod, (chips(pod),), "fsdp", OPTIMIZERS[0]) for model in models for pod in CURVE]


def separate() -> list[Case]:
    return [Case("7B, separate", pod, (chips(pod),), "fsdp", optimizer) for pod in PODS for optimizer in OPTIMIZERS]


PARTS = {"comparison": comparison, "scaling": scaling, "separate": separate}


# One case, in a process of its own


def params_of(model: Model) -> Any:
    if model.stacked:
        return {name: {"kernel": (model.layers, *shape)} for name, shape in model.kernels.items()}
    return {
        f"layer_{i}": {name: {"kernel": shape} for name, shape in model.kernels.items()} for i in range(model.layers)
    }


def partition(shape: tuple[int, ...], sharding: str, mesh: Mesh) -> P:
    """Over one mesh axis the rows of a matrix lie, or its columns where the rows cannot be divided."""
    entries = [*sharding.split(","), None][:2]
    if any(entry and size % mesh.shape[entry] for size, entry in zip(shape[-2:], entries, strict=True)):
        entries.reverse()
    return P(*[None] * (len(shape) - 2), *entries)


def optimizer_of(name: str, stacked: bool, mesh: Mesh, specs: Any) -> optax.GradientTransformation:
    if name == "optax.adamw":
        return optax.adamw(1e-3)
    if name == "optax.contrib.muon":
        axes = jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers((1,), (2,)), specs) if stacked else None
        return optax.contrib.muon(1e-3, ns_steps=STEPS, muon_weight_dimension_numbers=axes)
    routing = momentax.routing.matrix(in_axes=(1,), out_axes=(2,), batch_axes=(0,)) if stacked else None
    return momentax.muon(1e-3, steps=STEPS, precision=None, routing=routing, mesh=mesh, param_specs=specs)


def measure(case: Case) -> dict[str, Any]:
    """Compile one case and count what the program does."""
    model = MODELS[case.model]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=case.topology).devices
    mesh = Mesh(np.array(devices).reshape(case.mesh), ("fsdp", "tensor")[: len(case.mesh)])
    shapes = params_of(model)
    is_shape = {"is_leaf": lambda node: isinstance(node, tuple)}
    specs = jax.tree.map(lambda shape: partition(shape, case.sharding, mesh), shapes, **is_shape)
    params = jax.tree.map(
        lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)),
        shapes,
        specs,
        **is_shape,
    )
    tx = optimizer_of(case.optimizer, model.stacked, mesh, specs)
    lies = momentax.sharding.state_shardings(tx, params, mesh, specs)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(tx.init, params),
        lies,
    )
    start = time.perf_counter()
    step = jax.jit(tx.update, donate_argnums=(0, 1), out_shardings=(jax.tree.map(lambda x: x.sharding, params), lies))
    lowered = step.lower(params, state, params)
    traced, traced_cpu = time.perf_counter(), time.process_time()
    compiled = lowered.compile()
    ended, ended_cpu = time.perf_counter(), time.process_time()
    counts = count(compiled)
    ideal = ideal_flops(model, mesh.size)
    return {
        "collectives": {kind: few._asdict() for kind, few in counts.collectives.items()},
        "number": counts.total.number,
        "in_loops": counts.total.in_loops,
        "received_mb": round(counts.total.bytes / 1e6, 3),
        "flops": counts.flops,
        "flops_over_ideal": round(counts.flops / ideal, 4),
        "best_flops_over_ideal": round(best_flops(model, mesh.size) / ideal, 4),
        "temp_mb": round(counts.temp_bytes / 1e6, 2),
        "trace_s": round(traced - start, 2),
        "compile_s": round(ended - traced, 2),
        "compile_cpu_s": round(ended_cpu - traced_cpu, 2),
        "compiler_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "unknown_loops": counts.unknown_loops,
        "uncounted": counts.uncounted,
    }


# What is known without a compiler


def standard(shape: tuple[int, int]) -> int:
    """FLOPs of one matrix in the standard form."""
    m, n = sorted(shape)
    return STEPS * (4 * m * m * n + 2 * m**3)


def ideal_flops(model: Model, devices: int) -> float:
    """Of each device, if all had the same to do."""
    return model.layers * sum(map(standard, model.kernels.values())) / devices


def best_flops(model: Model, devices: int) -> float:
    """Of the busiest device, if whole matrices are dealt: the longest first, each to the device with least to do."""
    loads = np.zeros(devices)
    for cost in sorted(map(standard, model.kernels.values()), reverse=True):
        for _ in range(model.layers):
            loads[np.argmin(loads)] += cost
    return float(loads.max())


def exchanged_bytes(model: Model, devices: int) -> float:
    """Received by a device when each matrix is put together on one device and sent back: 2 b V (W - 1) / W^2."""
    elements = model.layers * sum(map(math.prod, model.kernels.values()))
    return 2 * WORD * elements * (devices - 1) / devices**2


# All cases


def run(case: Case, limit: float) -> dict[str, Any]:
    """The row of a case. One program at a time compiles for TPUs, so that seconds are its own."""
    command = [sys.executable, __file__, "--case", json.dumps(case._asdict())]
    with open(Path(tempfile.gettempdir()) / "tpu.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=limit)
            failed = reason(ended.stderr) if ended.returncode else None
        except subprocess.TimeoutExpired:
            failed = f"not compiled within {limit:g} s"
    row = {**case._asdict(), "chips": chips(case.topology)}
    row |= {"failed": failed} if failed else json.loads(ended.stdout.splitlines()[-1])
    print(summary(row), file=sys.stderr, flush=True)
    return row


def reason(stderr: str) -> str:
    """The line that says why a program ended: of an exception, or of a compiler that gave up."""
    lines = [line for line in stderr.splitlines() if re.match(r"[\w.]+Error: |F\d{4} ", line)]
    return re.sub(r"^F\d{4} .*?\] ", "", (lines or stderr.splitlines() or ["no message"])[-1])[:300]


def summary(row: dict[str, Any]) -> str:
    what = " ".join(str(row[key]) for key in ("model", "topology", "sharding", "optimizer"))
    if "failed" in row:
        return f"{what}: {row['failed']}"
    return (
        f"{what}: {row['number']} collectives, {row['received_mb']} MB, FLOPs {row['flops_over_ideal']} of ideal, "
        f"temp {row['temp_mb']} MB, compiled in {row['compile_s']} s"
    )


def check(limit: float) -> dict[str, Any]:
    """Figures beside their bars, and the rows from which they are."""
    results: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []

    def measured(*case: Any) -> dict[str, Any]:
        rows.append(run(Case(*case), limit))
        return rows[-1]

    def compare(name: str, row: dict[str, Any], figures: Callable[[], dict[str, tuple[float, float | None]]]) -> None:
        if "failed" in row:
            results.append({"name": name, "failed": row["failed"], "within_bar": False})
            return
        for figure, (value, bar) in figures().items():
            kept = bar is None or value <= bar
            results.append({"name": f"{name}: {figure}", "figure": round(value, 4), "bar": bar, "within_bar": kept})

    model, devices = MODELS["16 layers, d=1024"], 16
    ours, theirs = (
        measured("16 layers, d=1024", "v5e:4x4", (devices,), "fsdp", optimizer) for optimizer in OPTIMIZERS[:2]
    )
    compare(
        "v5e:4x4, fsdp, 16 layers",
        ours,
        lambda: {
            "collectives inside the iteration": (ours["in_loops"], 0),
            "collectives": (ours["number"], 2 * len(SMALL)),
            "MB received": (ours["received_mb"], 110),
            "FLOPs over ideal": (ours["flops"] / ideal_flops(model, devices), 1.05),
            "temp MB": (ours["temp_mb"], 25),
            # Of processor time, which other programs do not change. Where optax's does not compile in time, the limit
            # stands for its seconds.
            "CPU seconds of compilation over optax's": (
                ours["compile_cpu_s"] / theirs.get("compile_cpu_s", limit),
                0.5,
            ),
            "seconds of compilation over optax's": (ours["compile_s"] / theirs.get("compile_s", limit), None),
        },
    )
    model, devices = MODELS["64 layers, d=1024"], 64
    for sharding in ("fsdp,tensor", "tensor,fsdp"):
        row = measured("64 layers, d=1024", "v5p:4x4x4", (16, 4), sharding, OPTIMIZERS[0])
        compare(
            f"v5p:4x4x4 as 16x4, {sharding}, 64 layers",
            row,
            lambda row=row: {
                "collectives inside the iteration": (row["in_loops"], 0),
                "collectives": (row["number"], 2 * len(SMALL)),
                "bytes over 2 b V (W - 1) / W^2": (1e6 * row["received_mb"] / exchanged_bytes(model, devices), 1.05),
                "FLOPs over ideal": (row["flops"] / ideal_flops(model, devices), 1.05),
            },
        )
    few = MODELS["8 layers, d=1024"]
    row = measured("8 layers, d=1024", "v5p:4x4x4", (16, 4), "fsdp,tensor", OPTIMIZERS[0])
    compare(
        "v5p:4x4x4 as 16x4, fsdp,tensor, 32 matrices on 64 devices",
        row,
        lambda: {
            "collectives inside the iteration": (row["in_loops"], 0),
            "FLOPs over the best assignment of whole matrices": (
                row["flops"] / best_flops(few, devices),
                1.05,
            ),
            "bytes over 2 b V (W - 1) / W^2, which is padding": (
                1e6 * row["received_mb"] / exchanged_bytes(few, devices),
                None,
            ),
        },
    )
    model = MODELS["16 matrices, 1024x4096"]
    row = measured("16 matrices, 1024x4096", "v5p:4x4x4", (16, 4), "fsdp,tensor", OPTIMIZERS[0])
    # A device that is dealt a matrix receives all of it, and then every device its shards of all of them.
    dealt = (1 + model.layers / devices) * WORD * math.prod(model.kernels["up"]) * (devices - 1) / devices
    compare(
        "v5p:4x4x4 as 16x4, fsdp,tensor, 16 matrices of one shape",
        row,
        lambda: {
            "collectives inside the iteration": (row["in_loops"], 0),
            "FLOPs over the best assignment of whole matrices": (row["flops"] / best_flops(model, devices), 1.05),
            "bytes over the best assignment of whole matrices": (1e6 * row["received_mb"] / dealt, 1.05),
        },
    )
    return {"check": results, "rows": rows}


def table(results: dict[str, Any]) -> str:
    """The comparison in Markdown."""
    lines = [
        "| model | pod | sharding | optimizer | collectives | MB received | FLOPs / ideal | temp MB | compile CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["comparison"]:
        start = f"| {row['model']} | {row['topology']} | {row['sharding']} | {row['optimizer']} |"
        if "failed" in row:
            lines.append(f"{start} {row['failed']} | | | | |")
            continue
        kinds = ", ".join(f"{few['number']} {kind}" for kind, few in row["collectives"].items()) or "0"
        flops = f"{row['flops_over_ideal']:.2f}" if row["flops"] else "0"
        ends = f"{row['temp_mb']:.1f} | {row['compile_cpu_s']:.1f} |"
        lines.append(f"{start} {kinds} | {row['received_mb']:.1f} | {flops} | {ends}")
    return "\n".join(lines)


def plot(results: dict[str, Any], file: Path) -> None:
    """The scaling curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    measures = {
        "received_mb": "MB received",
        "flops_over_ideal": "FLOPs over ideal",
        "compile_cpu_s": "CPU seconds to compile",
    }
    rows = [row for row in results["scaling"] if "failed" not in row]
    for panel, (key, label) in zip(panels, measures.items(), strict=True):
        for model in dict.fromkeys(row["model"] for row in rows):
            points = [(row["chips"], row[key]) for row in rows if row["model"] == model]
            panel.plot(*zip(*points, strict=True), marker="o", label=model)
        panel.set(xscale="log", xlabel="chips", ylabel=label, xticks=[8, 32, 128, 512], xticklabels=[8, 32, 128, 512])
        panel.set_yscale("log" if key == "received_mb" else "linear")
        panel.minorticks_off()
    panels[0].legend()
    figure.savefig(file, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(PARTS)}; default: the first two")
    parser.add_argument("--check", action="store_true", help="only what has a bar, each figure beside it")
    parser.add_argument("--limit", metavar="SECONDS", type=float, default=900, help="for one case; default: 900")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the JSON to this new file, too")
    parser.add_argument("--force", action="store_true", help="let --out overwrite a file")
    parser.add_argument("--table", metavar="RESULTS", type=Path, help="print the comparison in these results, no more")
    parser.add_argument("--plot", metavar=("RESULTS", "PNG"), nargs=2, type=Path, help="draw the scaling, no more")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(Case(**arguments.case))))
        return 0
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return 0
    if arguments.plot:
        plot(json.loads(arguments.plot[0].read_text()), arguments.plot[1])
        return 0
    names = arguments.only.split(",") if arguments.only else list(PARTS)[:2]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--only: no part is called {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    if arguments.out and not arguments.out.parent.is_dir():
        parser.error(f"--out: there is no folder {arguments.out.parent}; create it first")
    if arguments.out and arguments.out.exists() and not arguments.force:
        parser.error(f"--out: {arguments.out} exists; choose another name, or add --force to overwrite it")
    if importlib.util.find_spec("libtpu") is None:
        parser.error('the TPU compiler is missing (no TPU is needed); get it by: pip install -e ".[tpu-aot]"')

    if arguments.check:
        results = check(arguments.limit)
    else:
        results = {name: [run(case, arguments.limit) for case in PARTS[name]()] for name in names}
    versions = {library: importlib.metadata.version(library) for library in ("jax", "jaxlib", "optax", "libtpu")}
    versions |= {"momentax": momentax.__version__, "python": platform.python_version()}
    text = json.dumps({"versions": versions, **results}, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)
    missed = [row for row in results.get("check", []) if not row["within_bar"]]
    for row in missed:
        print(f"{row['name']}: {row.get('failed') or row['figure']}, bar {row.get('bar')}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
