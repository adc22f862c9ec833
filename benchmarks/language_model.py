"""Optimizers on a small language model, each after the same search for its learning rate.

Every optimizer trains the model of examples/train_lm.py, in its default size, at five learning rates a factor of two
apart; the rate with the lowest final validation loss is then run with two more seeds (the
first seed chose the rate, for every optimizer alike). Weight decay is the optimizer's default there, and what is no
hidden matrix learns at AdamW's rate. All runs of a seed start from the same weights and see the same batches.

    python benchmarks/language_model.py --runs runs/language_model
    python benchmarks/language_model.py --runs runs/language_model --out results.json
    python benchmarks/language_model.py --table results.json      # Markdown, of a file written earlier

Prints JSON: for each optimizer the final validation loss at every rate; at the best one, of all seeds in order; the
median time of a step, of all optimizers in turns; and the steps after which the median seed reached the median final
loss of the first optimizer (null: never), and the seconds they take. Losses repeat on the same machine, text and
versions; seconds do not. The same command again resumes, run by run.
Exit code 2: bad arguments.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ROOT = Path(__file__).parent.parent
CENTRES = {"adamw": 3e-3, "muon": 4e-2, "normuon": 4e-2, "namo": 8e-2}  # of the rates tried; else the example's default
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SEEDS = (0, 1, 2)


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("train_lm", ROOT / "examples" / "train_lm.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_lm"] = module
    spec.loader.exec_module(module)
    return module


train_lm = load_example()


def configuration(optimizer: str, rate: float, seed: int, arguments: argparse.Namespace) -> Any:
    flags = {
        "optimizer": optimizer,
        "learning-rate": rate,
        "seed": seed,
        "steps": arguments.steps,
        "eval-every": arguments.eval_every,
        "checkpoint-every": arguments.steps,
        "sample": 0,
        "out": arguments.runs / f"{optimizer}-{rate:.3g}-{seed}",
    }
    data = ["--data", str(arguments.data)] if arguments.data else []
    return train_lm.parse([f"--{name}={value}" for name, value in flags.items()] + data)


def train(optimizer: str, rate: float, seed: int, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """The log of one run, trained now or found; empty where the loss did not stay finite."""
    config = configuration(optimizer, rate, seed, arguments)
    out = config.out
    try:
        with contextlib.redirect_stdout(sys.stderr):
            train_lm.run(config)
    except train_lm.Refused as refusal:
        if "lower --learning-rate" not in str(refusal):
            raise
        return []
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def final(records: list[dict[str, float]]) -> float:
    return records[-1][train_lm.VALIDATION] if records else float("inf")


def steps_to(records: list[dict[str, float]], target: float) -> float | None:
    """The step at which the validation loss, straight between evaluations, first is as low as `target`."""
    measured = [(record["step"], record[train_lm.VALIDATION]) for record in records if train_lm.VALIDATION in record]
    before = None
    for step, loss in measured:
        if loss <= target:
            if before is None:
                return step
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (step - before[0])
        before = (step, loss)
    return None


def step_times(rates: dict[str, float], arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a training step with each optimizer: medians of steps that are taken in turns."""
    with contextlib.redirect_stdout(sys.stderr):
        text = train_lm.load_text(arguments.data, arguments.runs.resolve(), 128)
    data, runs = jnp.asarray(text.train), {}
    for optimizer, rate in rates.items():
        config = train_lm.configure(configuration(optimizer, rate, SEEDS[0], arguments), optimizer)
        graphdef, params = nnx.split(train_lm.GPT(config, nnx.Rngs(config.seed)))
        tx = train_lm.make_optimizer(config)
        params = nnx.as_pure(params)
        state = train_lm.State(params, tx.init(params))
        step = train_lm.make_steps(config, graphdef, tx)[0].lower(state, data, np.int32(0)).compile()
        runs[optimizer] = (step, state)
    times: dict[str, list[float]] = {optimizer: [] for optimizer in runs}
    for number in range(arguments.timed_steps + 5):
        for optimizer, (step, state) in runs.items():
            start = time.perf_counter()
            runs[optimizer] = (step, jax.block_until_ready(step(state, data, np.int32(number)))[0])
            times[optimizer].append(1e3 * (time.perf_counter() - start))
    return {optimizer: statistics.median(values[5:]) for optimizer, values in times.items()}


def measure(optimizer: str, arguments: argparse.Namespace) -> dict[str, Any]:
    centre = CENTRES.get(optimizer, train_lm.defaults(optimizer)[0])
    rates = [float(f"{centre * factor:.3g}") for factor in FACTORS]
    sweep = {rate: final(train(optimizer, rate, SEEDS[0], arguments)) for rate in rates}
    best = min(sweep, key=lambda rate: sweep[rate])
    runs = sorted((train(optimizer, best, seed, arguments) for seed in SEEDS), key=final)
    if not all(runs):
        raise train_lm.Refused(f"a seed of {optimizer} diverged at {best}, the best rate of the first: add lower rates")
    return {
        "optimizer": optimizer,
        "sweep": {str(rate): round(loss, 4) if np.isfinite(loss) else None for rate, loss in sweep.items()},
        "learning_rate": best,
        "at_an_edge": best in (rates[0], rates[-1]),
        "bits_per_byte": [round(final(run), 4) for run in runs],
        "median_run": runs[len(runs) // 2],
    }


def table(rows: list[dict[str, Any]]) -> str:
    first = rows[0]["optimizer"]
    lines = [
        "| optimizer | best rate of five | bits per byte, median of three seeds (least, most) | ms a step | "
        f"steps to the loss of {first} | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, middle, high = row["bits_per_byte"][0], row["bits_per_byte"][1], row["bits_per_byte"][-1]
        reached = [f"{row[key]:.0f}" if row[key] is not None else "never" for key in ("steps_to", "seconds_to")]
        lines.append(
            f"| `{row['optimizer']}` | {row['learning_rate']:g} | {middle:.3f} ({low:.3f}, {high:.3f}) | "
            f"{row['ms_per_step']:.0f} | {reached[0]} | {reached[1]} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default="adamw,muon,normuon,namo", help="names, the first is the reference")
    parser.add_argument("--runs", type=Path, help="folder in which runs are kept")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--eval-every", type=int, default=25)
    parser.add_argument("--timed-steps", type=int, default=40, help="steps of each optimizer that are timed, in turns")
    parser.add_argument("--data", type=Path, help="as in examples/train_lm.py")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the JSON to this new file, too")
    parser.add_argument("--force", action="store_true", help="let --out overwrite a file")
    parser.add_argument("--table", metavar="FILE", type=Path, help="only print the table of this file")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())["rows"]))
        return 0
    if not arguments.runs:
        parser.error("--runs: name the folder in which runs are kept")
    if arguments.out and not arguments.out.parent.is_dir():
        parser.error(f"--out: there is no folder {arguments.out.parent}; create it first")
    if arguments.out and arguments.out.exists() and not arguments.force:
        parser.error(f"--out: {arguments.out} exists; choose another name, or add --force to overwrite it")

    try:
        rows = [measure(optimizer, arguments) for optimizer in arguments.optimizers.split(",")]
    except train_lm.Refused as refusal:
        parser.error(str(refusal))
    target = final(rows[0]["median_run"])
    times = step_times({row["optimizer"]: row["learning_rate"] for row in rows}, arguments)
    for row in rows:
        row["ms_per_step"] = round(times[row["optimizer"]], 1)
        steps = steps_to(row.pop("median_run"), target)
        row["steps_to"] = None if steps is None else round(steps)
        row["seconds_to"] = None if steps is None else round(steps * row["ms_per_step"] / 1e3, 1)
    versions = {library: importlib.metadata.version(library) for library in ("jax", "jaxlib", "optax", "flax")}
    text = json.dumps(
        {
            "versions": {**versions, "python": platform.python_version()},
            "device": f"{jax.devices()[0].platform}, {jax.devices()[0].device_kind}",
            "steps": arguments.steps,
            "rows": rows,
        },
        indent=2,
    )
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)
    print(table(rows), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
