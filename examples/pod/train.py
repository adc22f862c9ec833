"""Trains a byte-level language model on one CPU, on the devices of one host, or on a pod.

    python train.py --steps 200                                                  # one device of any kind
    JAX_NUM_CPU_DEVICES=8 python train.py --fsdp 4 --tensor 2 --out runs/first   # eight virtual devices
    srun python train.py --distributed --preset 7b --out /shared/runs/7b --resume
    python train.py --aot v5p:8x8x8 --preset 7b --sequence 4096 --batch-size 1024   # compile for a pod that you lack

Process 0 prints one JSON line per logged step: `loss` in bits per byte, `seconds` per step, `tokens_per_second`; at the
end the validation bits per byte. README.md beside this file has the commands for pods and what every flag costs.
"""

import argparse
import hashlib
import importlib.util
import inspect
import json
import math
import os
import platform
import secrets
import sys
import sysconfig
import textwrap
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.experimental import mesh_utils, multihost_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from model import AXES, BATCH, PRESETS, Model, is_leaf, leaves, losses, start
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

import momentax
from momentax.telemetry import count

# What libtpu asks the machine that it runs on, and its lock, which guards a TPU. A TPU host says so itself.
NO_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
NO_TPU |= {"TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# For experts: JAX 0.10 cannot read the text of programs that gather on the SparseCore. Products and collectives stay.
ON_TENSOR_CORE = dict.fromkeys(
    ("xla_tpu_offload_gather_to_sparsecore", "xla_tpu_enable_offloading_scatter_to_sparsecore"), "false"
)
KEPT = 2  # checkpoints; older ones are deleted
READ = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)  # batches, ahead of the step; a batch may be large
TOKEN = "process-0-was-here"  # in --out, while all processes look for it
PATIENCE = 35.0  # seconds; a network file system may hide a new file for 30

Arguments = argparse.Namespace


class Refused(Exception):
    """What was asked cannot be done; the message is one sentence that says why and what to do."""


def reason(error: Exception) -> str:
    """Its first line, as part of one sentence."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return textwrap.shorten(first, 500, placeholder=" ...").rstrip(".")


class State(NamedTuple):
    params: Any
    opt_state: Any


# --------------------------------------------------------------------------------------------------- processes


def everywhere(work: Callable[[], Any]) -> Any:
    """What `work` returns in this process; where it refuses in one process, all of them refuse. None goes on alone."""
    result, refusal = None, None
    try:
        result = work()
    except Refused as error:
        refusal = error
    refused = multihost_utils.process_allgather(np.array(refusal is not None))
    if refusal:
        raise refusal
    if refused.any():
        raise Refused(f"process {refused.argmax()} cannot go on; it says why")
    return result


def agree(value: Any, otherwise: str) -> None:
    """Refuses where processes hold different values; all of them ask, and wait for each other."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    if (digests != digests[0]).any():
        raise Refused(otherwise)


# -------------------------------------------------------------------------------------------------------- data


def load_text(file: str | None, sequence: int) -> np.ndarray:
    """The bytes `(n,)`: of a file, of which only what is used is read, or of Python's standard library."""
    if file is None:
        root, foreign = Path(sysconfig.get_path("stdlib")), {"test", "tests", "idle_test", "site-packages"}
        paths = [p for p in root.rglob("*.py") if not foreign.intersection(p.relative_to(root).parts)]
        text = np.frombuffer(b"\n".join(p.read_bytes() for p in sorted(paths)), np.uint8)
    elif os.path.isfile(file):
        text = np.memmap(file, np.uint8, "r") if os.path.getsize(file) else np.zeros(0, np.uint8)
    else:
        raise Refused(f"--text {file} is no file: give the path of one, the same on every host")
    if len(text) < 20 * (sequence + 1):
        raise Refused(f"--text {file} holds {len(text)} bytes, but --sequence {sequence} needs {20 * (sequence + 1)}")
    return text


def windows(text: np.ndarray, sequence: int) -> grain.MapDataset:
    """Its pieces `(sequence + 1,)` int32 in order; the last byte of each is the first of the next."""
    pieces = grain.MapDataset.range((len(text) - 1) // sequence)
    return pieces.map(lambda i: text[i * sequence : (i + 1) * sequence + 1].astype(np.int32))


def batches(samples: grain.MapDataset, rows: list[int], batch_size: int, count: int) -> grain.IterDataset:
    """The given rows of batches of samples. Which samples make a batch does not depend on who reads which rows."""
    steps = grain.MapDataset.range(count)
    read = steps.map(lambda step: np.stack([samples[step * batch_size + row] for row in rows]))
    return read.to_iter_dataset(READ)


class Feed:
    """What this process reads of the global batch, and how it becomes an array `(batch, sequence + 1)` of the mesh."""

    def __init__(self, args: Arguments, mesh: Mesh):
        self.shape = (args.batch_size, args.sequence + 1)
        self.sharding = NamedSharding(mesh, P(BATCH))
        self.like = jax.ShapeDtypeStruct(self.shape, np.int32, sharding=self.sharding)
        indices = self.sharding.addressable_devices_indices_map(self.shape).values()
        self.rows = sorted({row for index in indices for row in range(*index[0].indices(self.shape[0]))})

    def __call__(self, local: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            begin, end, _ = index[0].indices(self.shape[0])
            first = self.rows.index(begin)
            return local[first : first + end - begin]

        return jax.make_array_from_callback(self.shape, self.sharding, shard)


def identify(args: Arguments, text: np.ndarray) -> dict[str, Any]:
    """What a run must share with the checkpoint that it continues, beside the shapes of its state."""
    names = ("heads", "optimizer", "optimizer_arguments", "batch_size", "sequence", "seed")
    block, digest = 2**20, hashlib.sha256()
    for begin in range(0, len(text), max(block, len(text) // 256)):  # all of 256 MiB; of more, as much, spread evenly
        digest.update(text[begin : begin + block])
    print_of_text = {"text_bytes": len(text), "text_sha256": digest.hexdigest()}
    return {name: getattr(args, name) for name in names} | print_of_text


# --------------------------------------------------------------------------------------------- mesh and optimizer


def make_mesh(args: Arguments, devices: list[Any]) -> Mesh:
    """The axes of model.py, the last one between the nearest devices; by default fsdp takes what others leave."""
    sizes = {name: getattr(args, name) for name in AXES}
    others = math.prod(size for name, size in sizes.items() if name != "fsdp")
    sizes["fsdp"] = sizes["fsdp"] or max(1, len(devices) // others)
    if math.prod(sizes.values()) != len(devices):
        product = " x ".join(f"--{name} {size}" for name, size in sizes.items())
        raise Refused(f"{product} is not the number of devices, {len(devices)}: change one of them")
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    mesh = Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    if args.batch_size % (readers := math.prod(mesh.shape[name] for name in BATCH)):
        fits = -(-args.batch_size // readers) * readers
        raise Refused(
            f"--batch-size {args.batch_size} is not a multiple of data x fsdp x expert = {readers}: give {fits}, or "
            "more to --tensor"
        )
    if args.heads % sizes["tensor"]:
        raise Refused(f"--heads {args.heads} is not a multiple of --tensor {sizes['tensor']}: change one of them")
    for path, leaf in jax.tree_util.tree_leaves_with_path(leaves(make_model(args)), is_leaf=is_leaf):
        try:
            NamedSharding(mesh, leaf.spec).shard_shape(leaf.shape)
        except ValueError:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise Refused(
                f"{name} {leaf.shape} cannot be divided as {leaf.spec} over {dict(mesh.shape)}: choose sizes of the "
                "model that these multiply to, or another mesh"
            ) from None
    return mesh


def make_model(args: Arguments) -> Model:
    sizes = {name: getattr(args, name) for name in ("layers", "width", "heads", "hidden", "experts")}
    return Model(**sizes, dtype=jnp.dtype(args.dtype), remat=args.remat, attention=args.attention)


def find_factory(name: str) -> Callable[..., optax.GradientTransformation]:
    """`muon`, of momentax or else of optax, or with its module: `optax.contrib.muon`."""
    for path in (name, f"momentax.{name}", f"optax.{name}"):
        module, *rest = path.split(".")
        factory = {"momentax": momentax, "optax": optax}.get(module)
        for attribute in rest:
            factory = getattr(factory, attribute, None)
        if callable(factory) and "learning_rate" in inspect.signature(factory).parameters:
            return factory
    raise Refused(f"--optimizer {name} is none of momentax or optax: give the name of one that takes a learning_rate")


def scheduled(args: Arguments, peak: float) -> optax.Schedule:
    """Rises over the first `warmup` steps, then stays, or falls to a tenth as a cosine or a line."""
    rest = max(1, args.steps - args.warmup)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=0.1),
        "linear": optax.linear_schedule(peak, peak / 10, rest),
    }[args.schedule]
    if not args.warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / args.warmup, peak, args.warmup), after], [args.warmup])


def make_optimizer(args: Arguments, mesh: Mesh, specs: Any) -> optax.GradientTransformationExtraArgs:
    factory = find_factory(args.optimizer)
    accepted = inspect.signature(factory).parameters
    own = accepted["learning_rate"].default
    peak = args.learning_rate
    if peak is None:
        peak = own if isinstance(own, float) else 1e-3
    mask = momentax.routing.no_decay_on_vectors
    offered = {
        "mesh": mesh,
        "param_specs": specs,
        "routing": momentax.routing.flax(stacked="^blocks/"),
        "rest_learning_rate": scheduled(args, args.rest_learning_rate),
        "adam_learning_rate": scheduled(args, args.rest_learning_rate),  # optax's name for it
        "weight_decay": args.weight_decay,
        "weight_decay_mask": mask,
        "mask": mask,  # optax's name for it
        "compute_dtype": args.dtype if args.dtype != "float32" else None,
        "muon_weight_dimension_numbers": optax_muon_axes,
    }
    arguments = {name: value for name, value in offered.items() if name in accepted and value is not None}
    try:
        tx = factory(scheduled(args, peak), **arguments | args.optimizer_arguments)
    except (TypeError, ValueError) as error:
        raise Refused(f"--optimizer {args.optimizer} does not take these arguments: {reason(error)}") from None
    return optax.with_extra_args_support(tx)


def optax_muon_axes(params: Any) -> Any:
    """What optax.contrib.muon cannot see: that the stacked leaves are matrices."""
    rules = momentax.routing.resolve("train", params, momentax.routing.flax(stacked="^blocks/"))
    numbers = [optax.contrib.MuonDimensionNumbers(-2, -1) if rule.kind == "matrix" else None for rule in rules]
    return jax.tree.structure(params).unflatten(numbers)


# -------------------------------------------------------------------------------------------------------- step


class Program(NamedTuple):
    """All that is compiled, with where everything lies."""

    init: Callable[[jax.Array], State]
    step: Callable[[State, jax.Array], tuple[State, jax.Array]]
    evaluate: Callable[[Any, jax.Array], jax.Array]
    like: State  # shapes, dtypes and shardings


def make_program(args: Arguments, mesh: Mesh) -> Program:
    model = make_model(args)
    specs = jax.tree.map(lambda leaf: leaf.spec, leaves(model), is_leaf=is_leaf)
    tx = make_optimizer(args, mesh, specs)

    def init(key: jax.Array) -> State:
        params = start(model, key)
        return State(params, tx.init(params))

    def step(state: State, batch: jax.Array) -> tuple[State, jax.Array]:
        grads, bits = jax.grad(partial(losses, model, mesh), has_aux=True)(state.params, batch)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            return State(optax.apply_updates(state.params, updates), opt_state), bits

    try:
        like = jax.eval_shape(init, jax.random.key(args.seed))
        jax.eval_shape(tx.update, like.params, like.opt_state, like.params)
    except (TypeError, ValueError) as error:
        raise Refused(
            f"--optimizer {args.optimizer} cannot train this model from its gradients alone: {reason(error)}"
        ) from None
    place = State(
        jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda node: isinstance(node, P)),
        momentax.sharding.state_shardings(tx, like.params, mesh, specs),
    )
    one, batch = NamedSharding(mesh, P()), NamedSharding(mesh, P(BATCH))
    return Program(
        jax.jit(init, out_shardings=place),
        jax.jit(step, in_shardings=(place, batch), out_shardings=(place, one), donate_argnums=0),
        jax.jit(lambda params, batch: losses(model, mesh, params, batch)[1], out_shardings=one),
        jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), like, place),
    )


def lower_step(args: Arguments, program: Program, feed: Feed) -> Any:
    try:
        return program.step.lower(program.like, feed.like)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if args.attention != "cudnn":
            raise
        raise Refused(f"--attention cudnn cannot be used here ({reason(error)}): give --attention xla") from None


# ------------------------------------------------------------------------------------------------- checkpoints


def named(tree: Any) -> dict[str, Any]:
    """Leaves by path, as Orbax writes paths down."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def restore(checkpointer: Any, like: State, identity: dict[str, Any], out: Any) -> tuple[int, State, dict[str, Any]]:
    """The last checkpoint: its step, the state and that of the data; or a refusal that says what differs."""
    last = checkpointer.latest
    try:
        saved = checkpointer.metadata(last)
        was, position = saved.custom_metadata["identity"], saved.custom_metadata["data"]
        here, there = ({k: tuple(v.shape) for k, v in named(tree).items()} for tree in (like, saved.metadata))
        if not there:
            raise ValueError("it names no arrays")
        differing = [f"{k} ({was.get(k)} there, {v} here)" for k, v in identity.items() if was.get(k) != v]
        differing += [
            f"{path} ({there.get(path, 'absent')} there, {here.get(path, 'absent')} here)"
            for path in here | there
            if here.get(path) != there.get(path)
        ]
        if not differing:
            return last.step, checkpointer.load(last, abstract_state=like), position
    except Exception as error:  # of many kinds
        raise Refused(
            f"--out {out} has a last checkpoint, of step {last.step}, that cannot be read "
            f"({type(error).__name__}: {reason(error)}): if that stays so, delete the folder {last.path}, which makes "
            "the one before it the last"
        ) from None
    more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
    raise Refused(
        f"--out {out} holds the checkpoint of another run, with another {differing[0]}{more}: give the flags of "
        "that run, or another --out"
    )


def write(path: Any, lines: list[Any]) -> None:
    """JSON lines; the whole file or, when interrupted, nothing of it."""
    new = path.parent / (path.name + ".partial")
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    new.replace(path)


def read(path: Any, last: int) -> list[Any]:
    """The records of steps up to the last one; later ones come again."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if record["step"] <= last]


def folder(args: Arguments) -> Any:
    out = epath.Path(args.out)
    return out if "://" in args.out else out.resolve()


def claim(out: Any, resume: bool) -> None:
    """Makes the run's folder, which holds nothing yet or a run to be resumed, and leaves a token for `all_see`."""
    try:
        held = {path.name for path in out.iterdir()} - {TOKEN} if out.exists() else set()
        if held and "checkpoints" not in held:
            raise Refused(f"--out {out} holds files, but no run of this program: choose an empty or a new folder")
        if held and not resume:
            raise Refused(f"--out {out} holds a run: add --resume to continue it, or choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        (out / TOKEN).write_text(secrets.token_hex())
    except OSError as error:
        why = error.strerror or reason(error)
        raise Refused(f"--out {out} cannot be used ({why}): give a folder that may be written, or a new one") from None


def all_see(out: Any) -> None:
    """Refuses a folder that is not the same for all processes, which would wait in vain for each other's files."""
    token, began = out / TOKEN, time.monotonic()
    while not token.exists() and time.monotonic() - began < PATIENCE:
        time.sleep(1)
    seen = token.read_text() if token.exists() else None
    try:
        agree(seen, f"--out {out} is not one folder for all processes: give one of a file system that all hosts share")
    finally:
        if jax.process_index() == 0:
            token.unlink()


# -------------------------------------------------------------------------------------------------------- train


def train(args: Arguments) -> int:
    text = everywhere(lambda: load_text(args.text, args.sequence))
    identity, first = identify(args, text), jax.process_index() == 0
    agree(
        [identity, vars(args) | {"coordinator": None, "process": None, "out": bool(args.out)}],  # names may differ
        "the processes differ in their flags or in their text: start all with the same flags and the same --text "
        "(without it, the text is that of each host's Python)",
    )
    mesh = make_mesh(args, jax.devices())
    program, feed = make_program(args, mesh), Feed(args, mesh)
    cut = len(text) * 9 // 10
    samples = windows(text[:cut], args.sequence).seed(args.seed).shuffle().repeat()
    data = iter(batches(samples, feed.rows, args.batch_size, args.steps))
    out = folder(args) if args.out else None
    lowered = lower_step(args, program, feed)
    if out:
        everywhere(lambda: claim(out, args.resume) if first else None)
        all_see(out)
    keep = ocp.training.preservation_policies.LatestN(KEPT)
    with ocp.training.Checkpointer(out / "checkpoints", preservation_policy=keep) if out else nullcontext() as saver:
        step, curve = 0, []
        if saver:
            agree(
                saver.latest and saver.latest.step,
                f"--out {out} shows the processes different checkpoints: start them again when all hosts see the same",
            )
        if saver and saver.latest:
            step, state, position = restore(saver, program.like, identity, out)
            if step > args.steps:
                raise Refused(f"--out {out} has reached step {step}: give --steps {step} or more")
            data.set_state(position)
            curve = read(out / "curve.jsonl", step)
        else:
            state = program.init(jax.random.key(args.seed))

        def save() -> None:
            if first:
                write(out / "curve.jsonl", curve)  # before the checkpoint, so that it always reaches that far
            about = {"identity": identity, "data": data.get_state()}
            saver.save_async(step, state, force=True, custom_metadata=about)

        run = lowered.compile()  # now, so that no step's time contains it
        bar = tqdm(total=args.steps, initial=step, disable=not (first and sys.stderr.isatty()), dynamic_ncols=True)
        began, since, stopping, bits = time.perf_counter(), step, False, None
        while step < args.steps and not stopping:
            before = bits
            state, bits = run(state, feed(next(data)))
            jax.block_until_ready(before)  # one step ahead keeps devices busy; more would fill their queues and memory
            step, stopping = step + 1, told_to_stop(step)
            saving = saver and (step % args.checkpoint_every == 0 or step == args.steps or stopping)
            bar.update()
            if saving or step % args.log_every == 0 or step == args.steps:
                bits = float(bits)  # waits for the step
                took = (time.perf_counter() - began) / (step - since)
                speed = args.batch_size * args.sequence / took
                curve.append({"step": step, "loss": finite(bits), "seconds": took, "tokens_per_second": speed})
                if first:
                    bar.write(json.dumps(curve[-1]), file=sys.stdout)
                    sys.stdout.flush()
                if not math.isfinite(bits):
                    raise Refused(f"the loss is {bits} at step {step}: lower --learning-rate")
                began, since = time.perf_counter(), step
            if saving:
                paused = time.perf_counter()
                save()
                began += time.perf_counter() - paused
        bar.close()
    if stopping:
        left = "the same command with --resume goes on" if out else "nothing is kept without --out"
        print(f"train.py: told to stop after step {step}; {left}", file=sys.stderr)
        return 143
    finish(args, mesh, program, state, feed, windows(text[cut:], args.sequence), out)
    return 0


def finite(x: float) -> float | None:
    """As JSON has it, which knows no NaN."""
    return x if math.isfinite(x) else None


def told_to_stop(step: int) -> bool:
    """Whether the scheduler has sent SIGTERM to any process; all of them learn it at the same step."""
    return multihost_utils.reached_preemption_sync_point(step)


def finish(
    args: Arguments, mesh: Mesh, program: Program, state: State, feed: Feed, samples: grain.MapDataset, out: Any
) -> None:
    """Prints the result, and writes it where no file is."""
    rounds = args.validation_batches
    spread = np.linspace(0, len(samples) - 1, rounds * args.batch_size).astype(int)
    spaced = grain.MapDataset.source(spread).map(lambda i: samples[i])
    # One after the other: what does not depend on one another runs at once, and so may collectives, in any order.
    rows = batches(spaced, feed.rows, args.batch_size, rounds)
    bits = [float(program.evaluate(state.params, feed(some))) for some in rows]
    result = {
        "steps": args.steps,
        "validation_bits_per_byte": finite(sum(bits) / rounds),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "momentax": momentax.__version__},
        "flags": vars(args),
    }
    if jax.process_index() == 0:
        print(json.dumps(result))
        if out and (path := out / f"result-{args.steps}.json").exists():
            print(f"train.py: {path} is there from before, and stays as it was", file=sys.stderr)
        elif out:
            write(path, [result])


# --------------------------------------------------------------------------------------------- ahead of time


def aot(args: Arguments) -> int:
    """Compiles the training step for TPUs that need not be there, and prints what it costs each chip."""
    if importlib.util.find_spec("libtpu") is None:
        raise Refused('--aot needs the TPU compiler, but no TPU; get it by: pip install -e ".[tpu-aot]"')
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=args.aot).devices
    except Exception as error:  # of several kinds, by release
        raise Refused(f"--aot {args.aot} (such as v5e:4x4) does not start the TPU compiler: {reason(error)}") from None
    mesh = make_mesh(args, devices)
    program, feed = make_program(args, mesh), Feed(args, mesh)
    began = time.perf_counter()
    compiled = lower_step(args, program, feed).compile(ON_TENSOR_CORE if args.experts else None)
    report(args, mesh, program.like, compiled, time.perf_counter() - began)
    return 0


def report(args: Arguments, mesh: Mesh, like: State, compiled: Any, seconds: float) -> None:
    def size(tree: Any) -> int:
        shards = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(tree)]
        return sum(math.prod(s) * leaf.dtype.itemsize for s, leaf in zip(shards, jax.tree.leaves(tree), strict=True))

    counts, own = count(compiled), count(compiled, scope="optimizer")
    number = sum(leaf.size for leaf in jax.tree.leaves(like.params))
    tokens = args.batch_size * args.sequence
    print(
        f"{args.aot}: {mesh.size} chips as {dict(mesh.shape)}, {number / 1e9:.3f} G parameters, {tokens:,} bytes a step"
    )
    print(f"traced and compiled in {seconds:.0f} s; per chip and step:\n")
    rows = [
        ("memory, parameters", size(like.params) / 1e9, None, "GB"),
        ("memory, optimizer state", size(like.opt_state) / 1e9, None, "GB"),
        ("memory, temporary", counts.temp_bytes / 1e9, None, "GB"),
        ("FLOPs of products", counts.flops / 1e12, own.flops / 1e12, "T"),
    ]
    for kind, found in counts.collectives.items():
        mine = own.collectives.get(kind)
        rows.append((f"{kind}, {found.number} times", found.bytes / 1e9, mine.bytes / 1e9 if mine else 0.0, "GB"))
    rows.append(("all collectives", counts.total.bytes / 1e9, own.total.bytes / 1e9, "GB"))
    print(f"{'':32}{'total':>12}{'optimizer':>12}{'share':>9}")
    for name, total, mine, unit in rows:
        share = "" if mine is None else f"{mine:12.4g}{mine / total if total else 0:9.2%}"
        print(f"{name:32}{total:12.4g}{share or ' ' * 21} {unit}")


# -------------------------------------------------------------------------------------------------------- main


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Refused(f"--optimizer-arguments {text} is no JSON object: give one such as '{{\"steps\": 6}}'")
    return value


def parse(argv: list[str] | None) -> Arguments:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mesh = parser.add_argument_group("mesh (sizes that multiply to the number of devices)").add_argument
    mesh("--data", type=int, default=1, help="copies of the model (1)")
    mesh("--fsdp", type=int, default=0, help="parts of the batch and of every matrix (all devices that others leave)")
    mesh("--expert", type=int, default=1, help="parts of the experts; for the rest, more of fsdp (1)")
    mesh("--tensor", type=int, default=1, help="parts of heads and hidden layers (1)")
    model = parser.add_argument_group("model (the preset, and what replaces parts of it)").add_argument
    model("--preset", choices=PRESETS, default="tiny", help="(tiny)")
    for name in ("layers", "width", "heads", "hidden"):
        model(f"--{name}", type=int, help=f"({', '.join(f'{key}: {size[name]}' for key, size in PRESETS.items())})")
    model("--experts", type=int, default=0, help="experts in place of each MLP, two for a byte (0: a dense MLP)")
    model("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation; parameters: float32")
    model("--remat", choices=("full", "dots", "none"), default="full", help="what backward computes again (full)")
    model("--attention", choices=("xla", "cudnn"), default="xla", help="cudnn: fused, on NVIDIA in bfloat16 (xla)")
    learn = parser.add_argument_group("training").add_argument
    learn("--optimizer", default="muon", help="of momentax or optax, or like optax.contrib.muon (muon)")
    learn("--optimizer-arguments", type=json_object, default={}, metavar="JSON", help="such as '{\"steps\": 6}' ({})")
    learn("--learning-rate", type=float, help="the peak (the optimizer's own default, or else 1e-3)")
    learn("--rest-learning-rate", type=float, default=1e-3, help="where Muon and the like hand leaves to AdamW (1e-3)")
    learn("--weight-decay", type=float, help="of matrices and tables (the optimizer's own default)")
    learn("--schedule", choices=("constant", "cosine", "linear"), default="cosine", help="after the warm-up (cosine)")
    learn("--warmup", type=int, default=20, help="steps (20)")
    learn("--steps", type=int, default=200, help="(200)")
    learn("--batch-size", type=int, default=16, help="sequences, over all devices together (16)")
    learn("--sequence", type=int, default=256, help="bytes (256)")
    learn("--seed", type=int, default=0, help="of weights and order of the data (0)")
    files = parser.add_argument_group("data and files").add_argument
    files("--text", metavar="FILE", help="the same on every host; nine tenths to learn (Python's standard library)")
    files("--validation-batches", type=int, default=16, metavar="N", help="of the last tenth, at the end (16)")
    files("--out", metavar="DIR", help="checkpoints, curve and result; shared by all hosts; nothing is kept without it")
    files("--resume", action="store_true", help="continue what --out holds, if anything; exactly, unless flags change")
    files("--checkpoint-every", type=int, default=1000, metavar="STEPS", help=f"the last {KEPT} stay (1000)")
    files("--log-every", type=int, default=10, metavar="STEPS", help="reading the loss waits for the devices (10)")
    hosts = parser.add_argument_group("processes and pods").add_argument
    hosts("--distributed", action="store_true", help="one of many processes; TPU, Slurm, MPI, Kubernetes say which")
    hosts("--coordinator", metavar="HOST:PORT", help="where process 0 listens; in place of --distributed")
    hosts("--processes", type=int, help="how many")
    hosts("--process", type=int, help="which of them this is, from 0")
    hosts("--aot", metavar="TOPOLOGY", help="compile the step for v5e:4x4, v5p:8x8x8, ..., report its cost, and stop")
    args = parser.parse_args(argv)
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name, value in vars(args).items():
        least = 0 if isinstance(value, float) or name in ("seed", "experts", "fsdp", "warmup", "process") else 1
        if isinstance(value, int | float) and not isinstance(value, bool) and not value >= least:
            raise Refused(f"--{name.replace('_', '-')} {value} is too small: give {least} or more")
    if args.width % args.heads or args.width // args.heads % 2:
        raise Refused(f"--width {args.width} / --heads {args.heads} is no even number: change one of them")
    if args.experts == 1:
        raise Refused("--experts 1 leaves a byte no choice of two: give 2 or more, or 0 for a dense MLP")
    if args.expert > 1 and args.experts % args.expert:
        raise Refused(f"--experts {args.experts} is not a multiple of --expert {args.expert}: change one of them")
    if len({value is None for value in (args.coordinator, args.processes, args.process)}) > 1:
        raise Refused(
            "--coordinator, --processes and --process belong together: give all three, or --distributed alone"
        )
    if args.coordinator and args.process >= args.processes:
        raise Refused(f"--process {args.process} is none of --processes {args.processes}: they count from 0")
    return args


def connect(args: Arguments) -> None:
    if args.coordinator:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    elif args.distributed:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise Refused(
                f"--distributed finds no cluster here ({error}): leave it out for one process, or give --coordinator, "
                "--processes and --process"
            ) from None


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse(argv)
        if args.aot:
            return aot(args)
        connect(args)
        return train(args)
    except Refused as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
