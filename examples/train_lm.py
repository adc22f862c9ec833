"""Trains a byte-level GPT on text with any momentax or optax optimizer.

    python examples/train_lm.py                                      # the Python standard library, AdamP
    python examples/train_lm.py --optimizer am_adamw --data book.txt
    python examples/train_lm.py --compare adamw,muon,normuon,namo    # same start, same batches, one picture
    python examples/train_lm.py --spikes 0.01 --compare adamw,adamw_clip,spam,stable_spam   # planted bad gradients

A run lives in one folder: its configuration, a log with one JSON record per step, Orbax checkpoints, curves, a
sample of generated text. The same command again resumes it, however it stopped, and gives the numbers that an
uninterrupted run would have given: a batch depends on (seed, step) alone, and the log is cut back to the restored
checkpoint. Losses are in bits per byte; seconds count training steps, not compilation, evaluation, checkpoints.
"""

import argparse
import fcntl
import hashlib
import inspect
import json
import math
import os
import platform
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

import momentax

# Learning rate and weight decay by optimizer: the best of three or four rates, a factor of two or three apart, at 600
# steps of the default run. Adam's steps have about length one per coordinate before the rate; Adan's are shorter, its
# denominator holding gradient differences too; Lion's signs are always of full length. AM-SGD averages gradients where
# SGD adds them up, ten times as much at b1 = 0.9. What guards Adam against spikes takes Adam's. Those of Muon, NorMuon
# and NAMO are of matrices, from the search of benchmarks/language_model.py; the rest learns at AdamW's.
DEFAULTS = {
    "adamw": (3e-3, 0.1),
    "adamw_clip": (3e-3, 0.1),
    "spam": (3e-3, 0.1),
    "stable_spam": (3e-3, 0.1),
    "adamp": (3e-3, 0.1),
    "am_adamw": (3e-3, 0.1),
    "adan": (8e-3, 0.1),
    "lion": (5e-4, 0.3),
    "lion_k": (5e-4, 0.3),
    "sgd": (0.1, 0.0),
    "sgdp": (0.1, 1e-3),
    "am_sgd": (1.0, 1e-3),
    "muon": (2e-2, 0.1),
    "normuon": (2e-2, 0.1),
    "namo": (8e-2, 0.1),
}
OTHERS = (1e-3, 0.1)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True},  # off by default, as in sgdp
    "sgdp": {"b1": 0.9, "nesterov": True},
    # The default 2000 steps see resets at 500, 1000, 1500 (and 2000, too late to matter), SPAM's with 350 steps at the
    # full rate after each 150 of warm-up. Stable-SPAM's own 1000 would show one.
    "spam": {"reset_every": 500},
    "stable_spam": {"reset_every": 500},
}
SPIKE = 1000  # the noise of --spikes, in units of the mean |gradient| of the array it is added to
EVALUATION_WINDOWS = 256
TEMPERATURE = 0.8
VALIDATION = "validation_bits_per_byte"

Config = argparse.Namespace  # the flags; `data` becomes the SHA-256 of the text
Record = dict[str, float]  # one step: step, bits_per_byte, seconds so far, and VALIDATION if it was measured


class Refused(Exception):
    """What was asked cannot be done; the message is one sentence that says why and what to do."""


# -------------------------------------------------------------------------------------------------------- data


class Text(NamedTuple):
    train: np.ndarray  # (bytes,) uint8, the first 90 %
    validation: np.ndarray  # (bytes,) uint8, the last 10 %
    sha256: str
    name: str


def load_text(source: Path | None, outputs: Path, sequence: int) -> Text:
    """Reads the files in sorted order, prints what was taken, splits the bytes. `outputs` is no data."""
    if source is None:
        name, root = f"the standard library of Python {platform.python_version()}", Path(sysconfig.get_path("stdlib"))
        foreign = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
        files = [p for p in root.rglob("*.py") if not foreign.intersection(p.relative_to(root).parts)]
    elif source.is_dir():
        name, root = str(source), source
        files = [p for p in root.rglob("*") if p.is_file() and outputs not in p.resolve().parents]
        files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    elif source.is_file():
        name, root, files = str(source), source.parent, [source]
    else:
        raise Refused(f"--data {source} is neither a file nor a folder: give the path of a text, or of a folder")
    try:
        contents = [p.read_bytes() for p in sorted(files, key=lambda p: p.relative_to(root).as_posix())]
    except OSError as error:
        raise Refused(f"--data {error.filename} cannot be read ({error.strerror}): give readable text") from None
    texts = [content for content in contents if is_text(content)]
    data, least = b"\n".join(texts), 20 * (sequence + 1)
    if contents and not texts:
        raise Refused(f"--data {name} holds only binary data: give UTF-8 text, or a folder that holds some")
    if not least <= len(data) < 2**31:
        need = f"--sequence {sequence} needs {least} or more" if len(data) < least else "2 GiB is the limit"
        raise Refused(f"--data {name} holds {len(data)} bytes of text, but {need}: give another text")
    left_out = f", {len(contents) - len(texts)} others are not UTF-8 text" if len(texts) < len(contents) else ""
    print(f"data        {name}: {len(texts)} files{left_out}, {len(data):,} bytes")
    print(f"            SHA-256 {hashlib.sha256(data).hexdigest()}")
    train, validation = np.split(np.frombuffer(data, np.uint8), [len(data) * 9 // 10])
    return Text(train, validation, hashlib.sha256(data).hexdigest(), name)


def is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def windows(data: jax.Array, starts: jax.Array, sequence: int) -> jax.Array:
    """The `sequence` bytes from each start, and the next: `starts (...)` gives `(..., sequence + 1)` int32."""
    return data[starts[..., None] + jnp.arange(sequence + 1)].astype(jnp.int32)


def validation_windows(text: Text, config: Config) -> jax.Array:
    """Evenly spaced windows, the same in every run: `(rounds, batch, sequence + 1)`."""
    shape = (max(1, EVALUATION_WINDOWS // config.batch), config.batch)
    starts = np.linspace(0, len(text.validation) - config.sequence - 1, math.prod(shape)).astype(np.int32)
    return windows(jnp.asarray(text.validation), jnp.asarray(starts.reshape(shape)), config.sequence)


def unigram_bits(text: Text, evaluated: jax.Array) -> float:
    """Bits per evaluated byte under the byte frequencies of the training split."""
    counts = np.bincount(text.train, minlength=256) + 1  # + 1: a byte never seen has a finite price
    return float(-np.log2(counts / counts.sum())[np.asarray(evaluated[..., 1:])].mean())


# ------------------------------------------------------------------------------------------------------- model


class Block(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, use_bias=False, decode=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), is_causal=True)
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x))))


class GPT(nnx.Module):
    """Bytes `(batch, sequence)` int32 to logits of the byte after each, `(batch, sequence, 256)` float32."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.embed = nnx.Embed(256, config.width, rngs=rngs)
        self.position = nnx.Embed(config.sequence, config.width, rngs=rngs)
        self.blocks = nnx.List([Block(config.width, config.heads, rngs) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)
        self.head = nnx.Linear(config.width, 256, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.position(jnp.arange(tokens.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


# --------------------------------------------------------------------------------------------------- optimizer


def adamw_clip(learning_rate: Any, weight_decay: float, mask: Any) -> optax.GradientTransformationExtraArgs:
    """The plain remedy against spikes."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=weight_decay, mask=mask))


def optimizer_factories() -> dict[str, Callable[..., Any]]:
    """Every optimizer whose first argument is the learning rate: momentax's, and what optax has besides."""
    found = {"adamw_clip": adamw_clip}
    for name, value in [*vars(optax).items(), *vars(momentax.optimizers).items()]:  # the later wins
        if isinstance(value, FunctionType | partial) and not name.startswith(("_", "scale_by_")):
            if next(iter(inspect.signature(value).parameters), None) == "learning_rate":
                found[name] = value
    unfit = {"lbfgs", "noisy_sgd", "optimistic_adam", "rprop", "sm3"}  # want more than a schedule, or are old
    return {name: found[name] for name in sorted(found.keys() - unfit)}


def defaults(optimizer: str) -> tuple[float, float]:
    """Learning rate and weight decay: as searched for this model, or else the factory's own rate, or else Adam's."""
    own = inspect.signature(optimizer_factories()[optimizer]).parameters["learning_rate"].default
    return DEFAULTS.get(optimizer, (own, OTHERS[1]) if isinstance(own, float) else OTHERS)


def configure(config: Config, optimizer: str) -> Config:
    """The configuration of one run: the optimizer's own defaults where the flags leave it the choice."""
    factories = optimizer_factories()
    if optimizer not in factories:
        raise Refused(f"there is no optimizer {optimizer!r}: choose one of {', '.join(factories)}")
    learning_rate, weight_decay = defaults(optimizer)
    if "weight_decay" not in inspect.signature(factories[optimizer]).parameters:
        if config.weight_decay:
            raise Refused(f"{optimizer} has no weight decay: leave --weight-decay out, or take another optimizer")
        weight_decay = 0.0
    own = {"optimizer": optimizer, "learning_rate": learning_rate, "weight_decay": weight_decay}
    given = {name: vars(config)[name] for name in ("learning_rate", "weight_decay")}
    return Config(**vars(config) | own | {name: value for name, value in given.items() if value is not None})


def scheduled(config: Config, peak: float) -> optax.Schedule:
    warmup = max(1, config.steps // 10)
    return optax.warmup_cosine_decay_schedule(peak / warmup, peak, warmup, config.steps + 1, peak / 20)


def make_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    schedule = scheduled(config, config.learning_rate)
    factory = optimizer_factories()[config.optimizer]
    mask = momentax.routing.no_decay_on_vectors
    decay = {"weight_decay": config.weight_decay, "weight_decay_mask": mask, "mask": mask}  # optax says `mask`
    accepted = inspect.signature(factory).parameters
    arguments = {name: value for name, value in decay.items() if name in accepted}
    if "rest_learning_rate" in accepted:  # embeddings, the head and vectors, which matrix methods give to AdamW
        arguments["rest_learning_rate"] = scheduled(config, DEFAULTS["adamw"][0])
    return optax.with_extra_args_support(factory(schedule, **arguments, **ARGUMENTS.get(config.optimizer, {})))


# -------------------------------------------------------------------------------------------------------- step


class State(NamedTuple):
    params: Any
    opt_state: Any


def bits_per_byte(graphdef: Any, params: Any, sample: jax.Array) -> jax.Array:
    logits = nnx.merge(graphdef, params)(sample[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, sample[:, 1:]).mean() / math.log(2)


def spike(config: Config, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a step's gradients get a spike, and the key of its noise: the same for every optimizer."""
    root = jax.random.fold_in(jax.random.key(config.seed), 2**31)  # a batch folds in its step, which is smaller
    comes, noise = jax.random.split(jax.random.fold_in(root, step))
    return jax.random.bernoulli(comes, config.spikes), noise


def add_spike(config: Config, grads: Any, step: jax.Array) -> Any:
    comes, key = spike(config, step)

    def noisy() -> Any:
        noise = optax.tree.random_like(key, grads)
        return jax.tree.map(lambda g, z: g + SPIKE * jnp.abs(g).mean() * z, grads, noise)

    return jax.lax.cond(comes, noisy, lambda: grads)


def make_steps(config: Config, graphdef: Any, tx: optax.GradientTransformationExtraArgs) -> tuple[Any, Any]:
    """The jitted `train_step(state, data, step) -> (state, loss)` and `evaluate(params, windows) -> loss`."""

    def train_step(state: State, data: jax.Array, step: jax.Array) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        starts = jax.random.randint(key, (config.accumulate, config.batch), 0, data.size - config.sequence)

        def accumulate(total: Any, starts: jax.Array) -> tuple[Any, None]:
            sample = windows(data, starts, config.sequence)
            here = jax.value_and_grad(lambda params: bits_per_byte(graphdef, params, sample))(state.params)
            return jax.tree.map(jnp.add, total, here), None

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        total, _ = jax.lax.scan(accumulate, zeros, starts)
        loss, grads = jax.tree.map(lambda x: x / config.accumulate, total)
        if config.spikes:
            grads = add_spike(config, grads, step)
        # `value` is for methods that model the loss: like the gradient, the mean of all that was accumulated
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss)
        return State(optax.apply_updates(state.params, updates), opt_state), loss

    def evaluate(params: Any, evaluated: jax.Array) -> jax.Array:
        return jax.lax.map(lambda sample: bits_per_byte(graphdef, params, sample), evaluated).mean()

    return jax.jit(train_step, donate_argnums=0), jax.jit(evaluate)


# ------------------------------------------------------------------------------------------------- checkpoints


def write(path: Path, content: bytes) -> None:
    """Replaces the whole file or, when interrupted, nothing of it."""
    new = path.with_name(path.name + ".partial")
    new.write_bytes(content)
    os.replace(new, path)


def identity(config: Config) -> dict[str, Any]:
    """All that determines the numbers of a run, and nothing else."""
    free = {"compare", "out", "checkpoint_every", "eval_every", "sample"} | ({"spikes"} if not config.spikes else set())
    return {name: value for name, value in vars(config).items() if name not in free}


@contextmanager
def claim(out: Path, config: Config) -> Iterator[None]:
    """Makes `out` the folder of this configuration and this process, or refuses it without touching it."""
    label, here = out / "config.json", identity(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = json.loads(label.read_text()) if label.exists() else None
        foreign = not isinstance(there, dict) and any(p.name != "config.json.partial" for p in out.iterdir())
    except (OSError, ValueError) as error:
        raise Refused(f"--out {out} cannot hold a run ({error}): choose another folder") from None
    if foreign:
        raise Refused(f"--out {out} holds files, but no run of this program: choose an empty or a new folder")
    if there is None:
        write(label, json.dumps(here, indent=1).encode())
    elif there != here:
        names = [name for name in here | there if here.get(name) != there.get(name)]
        differing = ", ".join(f"{name} ({there.get(name)} there, {here.get(name)} here)" for name in names)
        raise Refused(f"--out {out} belongs to a run with another {differing}: choose another --out")
    with label.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError:
            raise Refused(f"another process trains in {out}: wait for it, or choose another --out") from None
        yield


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C in place of raising, so that it stops a run between two steps and not inside a save."""
    caught: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, previous)


class Log:
    """One record per step, in memory and on disk. Records after the restored step are dropped: they come again."""

    def __init__(self, path: Path, restored: int):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if len(lines) < restored:
            raise Refused(f"{path} ends before the checkpoint of step {restored}: put it back, or choose another --out")
        self.path, self.saved = path, restored
        self.records: list[Record] = [json.loads(line) for line in lines[:restored]]
        if len(lines) > restored:
            write(path, b"".join(lines[:restored]))

    def save(self) -> None:
        """Comes before every checkpoint, so that the records up to a checkpoint are always whole."""
        with self.path.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in self.records[self.saved :])
            file.flush()
            os.fsync(file.fileno())
        self.saved = len(self.records)


def train(config: Config, text: Text, out: Path) -> tuple[Any, Any, list[Record]]:
    """Trains, resumes or finds finished the run in `out`; returns the model (graphdef, params) and its log."""
    graphdef, params = nnx.split(GPT(config, nnx.Rngs(config.seed)))
    params = nnx.as_pure(params)
    tx = make_optimizer(config)
    state = State(params, tx.init(params))
    folder, keep = out.resolve() / "checkpoints", ocp.training.preservation_policies.LatestN(2)
    with claim(out, config), ocp.training.Checkpointer(folder, preservation_policy=keep) as checkpointer:
        step = checkpointer.latest.step if checkpointer.latest else 0
        if step:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
            state = checkpointer.load(step, abstract_state=like)
            print(f"            {out} {'is finished' if step == config.steps else f'resumes after step {step}'}")
        log = Log(out / "metrics.jsonl", step)
        if step < config.steps:
            state = train_from(step, state, make_steps(config, graphdef, tx), config, text, log, checkpointer)
    return graphdef, state.params, log.records


def train_from(
    step: int, state: State, steps: tuple[Any, Any], config: Config, text: Text, log: Log, checkpointer: Any
) -> State:
    data, evaluated = jnp.asarray(text.train), validation_windows(text, config)
    train_step = steps[0].lower(state, data, np.int32(0)).compile()  # now, so that no step's time contains it
    evaluate = steps[1].lower(state.params, evaluated).compile()
    seconds = log.records[-1]["seconds"] if step else 0.0
    tokens = config.accumulate * config.batch * config.sequence
    looks = {"mininterval": 0.5 if sys.stderr.isatty() else 10.0, "dynamic_ncols": True}
    with interrupts() as caught, tqdm(total=config.steps, initial=step, desc=config.optimizer, **looks) as bar:
        while step < config.steps:
            start = time.perf_counter()
            state, loss = train_step(state, data, np.int32(step))
            loss = float(loss)  # waits for the step
            took = time.perf_counter() - start
            step, seconds = step + 1, seconds + took
            if not math.isfinite(loss):
                raise Refused(f"the loss of {config.optimizer} is {loss} at step {step}: lower --learning-rate")
            record = {"step": step, "bits_per_byte": loss, "seconds": seconds}
            if step % config.eval_every == 0 or step == config.steps:
                record[VALIDATION] = float(evaluate(state.params, evaluated))
                if not math.isfinite(record[VALIDATION]):
                    raise Refused(f"{config.optimizer} diverged at step {step}: lower --learning-rate")
                bar.write(f"step {step:6d}  train {loss:.3f}  validation {record[VALIDATION]:.3f} bits per byte")
            log.records.append(record)
            bar.set_postfix_str(f"{loss:.3f} bits/byte, {tokens / took:,.0f} tokens/s", refresh=False)
            bar.update()
            if caught or step % config.checkpoint_every == 0 or step == config.steps:
                log.save()
                checkpointer.save(step, state)
            if caught:
                raise KeyboardInterrupt
    return state


# -------------------------------------------------------------------------------------------------- evaluation


def generate(graphdef: Any, params: Any, prompt: np.ndarray, count: int, seed: int) -> bytes:
    """`count` bytes to follow the prompt `(sequence,)`; each is drawn given the `sequence` bytes before it."""

    def one(window: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graphdef, params)(window[None])[0, -1]
        byte = jax.random.categorical(key, logits / TEMPERATURE)
        return jnp.append(window[1:], byte), byte

    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.lax.scan(one, jnp.asarray(prompt, jnp.int32), keys)[1], np.uint8).tobytes()


def draw(path: Path, runs: dict[str, list[Record]], unigram: float, title: str, spikes: np.ndarray) -> None:
    """Training (thin, smoothed) and validation (dots) against steps and against seconds; the best is first."""
    palette = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000"]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for number, (name, records) in enumerate(sorted(runs.items(), key=lambda run: run[1][-1][VALIDATION])):
        color, label = palette[number % len(palette)], f"{name}  {records[-1][VALIDATION]:.3f}"
        width = 1 + len(records) // 50
        smooth = np.convolve([r["bits_per_byte"] for r in records], np.ones(width) / width, "valid")
        measured = [r for r in records if VALIDATION in r]
        for panel, axis in zip(panels, ("step", "seconds"), strict=True):
            panel.plot([r[axis] for r in records][width - 1 :], smooth, color=color, linewidth=0.8, alpha=0.4)
            bits = [r[VALIDATION] for r in measured]
            panel.plot([r[axis] for r in measured], bits, "o-", color=color, markersize=3, label=label)
    for panel, axis in zip(panels, ("steps", "seconds of training"), strict=True):
        panel.axhline(unigram, color="#555555", linestyle=":")
        panel.text(1, 1.01 * unigram, f"unigram {unigram:.3f}", transform=panel.get_yaxis_transform(), ha="right")
        panel.set_xlabel(axis)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].vlines(spikes, 0, 1, "#555555", "--", transform=panels[0].get_xaxis_transform(), lw=0.7, alpha=0.5)
    levels = [unigram, *(records[-1][VALIDATION] for records in runs.values())]
    panels[0].set_ylim(0.9 * min(levels), 1.1 * max(levels))
    panels[0].set_ylabel("bits per byte")
    key = {"title": "validation, at the end (thin: training)", "alignment": "left", "frameon": False}
    below = {"bbox_to_anchor": (1, unigram), "bbox_transform": panels[1].get_yaxis_transform()}
    panels[1].legend(loc="upper right", **below, **key)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path.with_name("partial.png"), dpi=150)
    os.replace(path.with_name("partial.png"), path)


def summarize(runs: dict[str, list[Record]], unigram: float) -> None:
    print(f"\n{'optimizer':12}  bits per byte  seconds  ms/step")
    for name, records in sorted(runs.items(), key=lambda run: run[1][-1][VALIDATION]):
        bits, seconds = records[-1][VALIDATION], records[-1]["seconds"]
        print(f"{name:12}  {bits:13.3f}  {seconds:7.1f}  {1000 * seconds / len(records):7.1f}")
    print(f"{'unigram':12}  {unigram:13.3f}\n")


# -------------------------------------------------------------------------------------------------------- main


def parse(argv: list[str] | None) -> Config:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--optimizer", default="adamp", help="any optimizer of momentax or optax (adamp)")
    flag("--compare", metavar="NAMES", help="train each of these, separated by commas, and draw them together")
    flag("--learning-rate", type=float, help="the peak, reached after a tenth of the steps (by optimizer)")
    flag("--weight-decay", type=float, help="of matrices, never of biases and norms (by optimizer)")
    flag("--steps", type=int, default=2000, help="updates (2000)")
    flag("--batch", type=int, default=8, help="sequences in a batch (8)")
    flag("--accumulate", type=int, default=1, help="batches whose mean gradient makes one update (1)")
    flag("--sequence", type=int, default=128, help="bytes in a sequence (128)")
    flag("--width", type=int, default=128, help="of the model (128)")
    flag("--depth", type=int, default=4, help="transformer blocks (4)")
    flag("--heads", type=int, default=4, help="attention heads (4)")
    flag("--spikes", type=float, default=0.0, metavar="RATE", help=f"chance per step of a {SPIKE} x gradient spike (0)")
    flag("--seed", type=int, default=0, help="of weights, batches, spikes and generated text (0)")
    flag("--data", type=Path, help="a file or a folder of text (the Python standard library)")
    flag("--out", type=Path, help="the run's folder (one under runs/, named after the configuration)")
    flag("--checkpoint-every", type=int, default=200, help="steps from checkpoint to checkpoint (200)")
    flag("--eval-every", type=int, default=100, help="steps from evaluation to evaluation (100)")
    flag("--sample", type=int, default=500, help="bytes of text to generate at the end (500)")
    config = parser.parse_args(argv)
    for name, value in vars(config).items():
        if isinstance(value, int) and value < (name not in ("seed", "sample")):
            raise Refused(f"--{name.replace('_', '-')} {value} is too small: give 1 or more")
    for name, limit in {"learning_rate": math.inf, "weight_decay": math.inf, "spikes": 1}.items():
        value = getattr(config, name)
        if value is not None and not 0 <= value < limit:
            raise Refused(f"--{name.replace('_', '-')} {value} makes no sense: give 0 or more, and less than {limit}")
    if config.compare and len(set(config.compare.split(","))) < len(config.compare.split(",")):
        raise Refused(f"--compare {config.compare} names an optimizer twice: name each once")
    if config.width % config.heads:
        raise Refused(f"--width {config.width} is not a multiple of --heads {config.heads}: change one of them")
    return config


def run(config: Config) -> None:
    text = load_text(config.data, (config.out or Path("runs")).resolve(), config.sequence)
    config.data = text.sha256
    configs = [configure(config, name) for name in (config.compare or config.optimizer).split(",")]
    config = Config(**vars(config) | {"optimizer": "compare"}) if config.compare else configs[0]
    tag = hashlib.sha256(json.dumps(identity(config)).encode()).hexdigest()[:8]
    out = config.out or Path("runs") / f"{config.optimizer}-{tag}"
    unigram = unigram_bits(text, validation_windows(text, config))
    print(f"unigram     {unigram:.3f} bits per validation byte (the byte frequencies of the training split)")
    spikes = 1 + np.flatnonzero(jax.vmap(lambda step: spike(config, step)[0])(jnp.arange(config.steps)))
    if config.spikes:
        print(f"spikes      in {len(spikes)} of {config.steps} steps, {SPIKE} x the mean |gradient| of each array")
    print(f"run         {out}")
    if config.compare:
        with claim(out, config):
            runs = {one.optimizer: train(one, text, out / one.optimizer)[2] for one in configs}
    else:
        graphdef, params, records = train(config, text, out)
        runs = {config.optimizer: records}
        if config.sample:
            prompt = text.validation[: config.sequence]
            sample = generate(graphdef, params, prompt, config.sample, config.seed)
            write(out / "sample.txt", sample)
            print(f"\n--- validation text\n{prompt.tobytes().decode(errors='replace')}")
            print(f"--- the model goes on\n{sample.decode(errors='replace')}\n---")
    summarize(runs, unigram)
    curves = out / f"{'-'.join(runs)}.png"
    model = f"Byte-level GPT, {config.depth} blocks of width {config.width}, on {text.name}"
    spiked = ", spikes where dashed" if config.spikes else ""
    title = f"{model}, {config.accumulate * config.batch} x {config.sequence} bytes per step{spiked}"
    draw(curves, runs, unigram, title, spikes)
    print(f"curves      {curves}")


def main(argv: list[str] | None = None) -> int:
    try:
        run(parse(argv))
    except Refused as error:
        print(f"train_lm.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train_lm.py: stopped; the same command again resumes from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
