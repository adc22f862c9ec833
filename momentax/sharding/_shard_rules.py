"""What operations of a program do on shards instead of whole arrays: see `momentax.sharding.on_shards`."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from momentax.varying import gather

Lies = tuple[tuple[str, ...], ...]  # for each axis the mesh axes over which it is sharded


class Shard(NamedTuple):
    """This device's part of an array."""

    x: Any
    lies: Lies


class Operation(NamedTuple):
    """One operation of a program that runs on shards.

    Attributes:
      sizes: devices of each mesh axis.
      shapes: of the whole operands.
      results: types of the whole results.
      params: of the primitive.
      bind: from operands to results.
    """

    sizes: Mapping[str, int]
    shapes: Sequence[tuple[int, ...]]
    results: Sequence[Any]
    params: Mapping[str, Any]
    bind: Callable[..., Any]


NOWHERE: Lies = ((),)
ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp clz complex conj convert_element_type "
    "copy copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le log log1p "
    "logistic lt max min mul ne neg nextafter not or population_count pow real reduce_precision rem round rsqrt "
    "select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan "
    "tanh xor".split()
)
REDUCTIONS = {
    "reduce_sum": jax.lax.psum,
    "reduce_max": jax.lax.pmax,
    "reduce_min": jax.lax.pmin,
    "reduce_and": lambda x, names: jax.lax.pmin(x.astype(jnp.int32), names).astype(bool),
    "reduce_or": lambda x, names: jax.lax.pmax(x.astype(jnp.int32), names).astype(bool),
}
LOGIC = (REDUCTIONS["reduce_and"], REDUCTIONS["reduce_or"])


def devices_of(names: Sequence[str], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[name] for name in names)


def only(lies: Lies, sizes: Mapping[str, int]) -> Lies:
    """Without mesh axes that have no size."""
    return tuple(tuple(name for name in names if name in sizes) for names in lies)


def everywhere(x: Any) -> Shard:
    return Shard(x, NOWHERE * jnp.ndim(x))


def lay(shard: Shard, lies: Lies, sizes: Mapping[str, int]) -> Shard:
    """The same array lying otherwise: gathered along axes that change, then cut."""
    x = shard.x
    if not jnp.size(x) and shard.lies != lies:  # nothing travels
        ways = zip(x.shape, shard.lies, lies, strict=True)
        shape = [n * devices_of(now, sizes) // devices_of(then, sizes) for n, now, then in ways]
        return Shard(jnp.zeros(shape, x.dtype), lies)
    for axis, (now, then) in enumerate(zip(shard.lies, lies, strict=True)):
        if now and now != then:
            x = gather(x, now, axis)
    for axis, (now, then) in enumerate(zip(shard.lies, lies, strict=True)):
        if then and now != then:
            size = x.shape[axis] // devices_of(then, sizes)
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(then) * size, size, axis)
    return Shard(x, lies)


def whole(shard: Shard, sizes: Mapping[str, int]) -> Any:
    return lay(shard, NOWHERE * len(shard.lies), sizes).x


def common(operands: Sequence[Shard]) -> Lies:
    """Where operands of one shape should meet: on shards, wherever one of them is."""
    rank = max(len(shard.lies) for shard in operands)
    full = [shard.lies for shard in operands if len(shard.lies) == rank]
    lies: list[tuple[str, ...]] = []
    for axis in range(rank):
        used = {name for names in lies for name in names}
        found = (lie[axis] for lie in full if lie[axis] and not used & set(lie[axis]))
        lies.append(next(found, ()))
    return tuple(lies)


def entry_by_entry(op: Operation, operands: list[Shard]) -> list[Shard]:
    lies = common(operands)
    laid = []
    for shard, shape in zip(operands, op.shapes, strict=True):  # axes of length 1 are repeated along the others'
        own = tuple(names if n > 1 else () for names, n in zip(lies, shape, strict=False))
        laid.append(lay(shard, own, op.sizes).x)
    return [Shard(result, lies) for result in op.bind(*laid)]


def on_whole_arrays(op: Operation, operands: list[Shard]) -> list[Shard]:
    return list(map(everywhere, op.bind(*(whole(shard, op.sizes) for shard in operands))))


def _reduce(collective: Callable[..., Any], op: Operation, operands: list[Shard]) -> list[Shard]:
    [shard] = operands
    if collective in LOGIC and shard.x.dtype != bool:
        return on_whole_arrays(op, operands)
    axes = op.params["axes"]
    names = tuple(name for axis in axes for name in shard.lies[axis])
    [result] = op.bind(shard.x)
    result = collective(result, names) if names else result
    return [Shard(result, tuple(names for axis, names in enumerate(shard.lies) if axis not in axes))]


def _bitcast(op: Operation, operands: list[Shard]) -> list[Shard]:
    same = tuple(op.results[0].shape) == op.shapes[0]
    return entry_by_entry(op, operands) if same else on_whole_arrays(op, operands)


def _broadcast(op: Operation, operands: list[Shard]) -> list[Shard]:
    shard = operands[0]
    shape, lies = list(op.params["shape"]), list(NOWHERE * len(op.params["shape"]))
    for axis, target in enumerate(op.params["broadcast_dimensions"]):
        if shard.lies[axis]:  # so not of length 1
            shape[target], lies[target] = shard.x.shape[axis], shard.lies[axis]
    return [Shard(op.bind(shard.x, shape=tuple(shape))[0], tuple(lies))]


def _transpose(op: Operation, operands: list[Shard]) -> list[Shard]:
    [shard] = operands
    return [Shard(op.bind(shard.x)[0], tuple(shard.lies[axis] for axis in op.params["permutation"]))]


def _squeeze(op: Operation, operands: list[Shard]) -> list[Shard]:
    [shard] = operands
    gone = op.params["dimensions"]
    return [Shard(op.bind(shard.x)[0], tuple(names for axis, names in enumerate(shard.lies) if axis not in gone))]


def _reshape(op: Operation, operands: list[Shard]) -> list[Shard]:
    """Shards stay where they are the major axis of what is merged or split, and divide it."""
    shard, old, new = operands[0], op.shapes[0], op.params["new_sizes"]
    if op.params.get("dimensions") is not None or 0 in old:
        return on_whole_arrays(op, operands)
    before, after = list(NOWHERE * len(old)), list(NOWHERE * len(new))
    for ins, outs in _blocks(old, new):
        major = next((axis for axis in ins if old[axis] > 1), None)
        target = next((axis for axis in outs if new[axis] > 1), None)
        if major is not None and target is not None and new[target] % devices_of(shard.lies[major], op.sizes) == 0:
            before[major] = after[target] = shard.lies[major]
    laid = lay(shard, tuple(before), op.sizes)
    sizes = tuple(n // devices_of(names, op.sizes) for n, names in zip(new, after, strict=True))
    return [Shard(op.bind(laid.x, new_sizes=sizes)[0], tuple(after))]


def _blocks(old: Sequence[int], new: Sequence[int]):
    """Axes of two shapes of the same size in the shortest runs that hold the same entries."""
    ins: list[int] = []
    outs: list[int] = []
    i = o = 0
    while i < len(old) or o < len(new):
        left, right = math.prod(old[a] for a in ins), math.prod(new[a] for a in outs)
        if ins and outs and left == right:
            yield ins, outs
            ins, outs = [], []
        elif o == len(new) or (i < len(old) and left <= right):
            ins.append(i)
            i += 1
        else:
            outs.append(o)
            o += 1
    yield ins, outs


def _concatenate(op: Operation, operands: list[Shard]) -> list[Shard]:
    along = op.params["dimension"]
    lies = tuple(() if axis == along else names for axis, names in enumerate(common(operands)))
    return [Shard(op.bind(*(lay(shard, lies, op.sizes).x for shard in operands))[0], lies)]


def _slice(op: Operation, operands: list[Shard]) -> list[Shard]:
    """Axes that are cut are gathered first."""
    [shard], [shape] = operands, op.shapes
    start, limit, strides = (op.params[name] for name in ("start_indices", "limit_indices", "strides"))
    steps = strides or (1,) * len(shape)
    full = [start[axis] == 0 and limit[axis] == n and steps[axis] == 1 for axis, n in enumerate(shape)]
    lies = tuple(names if keep else () for names, keep in zip(shard.lies, full, strict=True))
    x = lay(shard, lies, op.sizes).x
    ends = tuple(x.shape[axis] if keep else limit[axis] for axis, keep in enumerate(full))
    return [Shard(op.bind(x, limit_indices=ends)[0], lies)]


def _distribute(op: Operation, operands: list[Shard]) -> list[Shard]:
    laid = [lay(shard, only(lies, op.sizes), op.sizes) for shard, lies in zip(operands, op.params["lies"], strict=True)]
    results = op.params["job"](*(shard.x for shard in laid))
    return [Shard(x, laid[index].lies) for x, index in zip(results, op.params["renewed"], strict=True)]


def _device_put(op: Operation, operands: list[Shard]) -> list[Shard]:
    """To another memory of the device; to other devices only whole."""
    if not all(isinstance(place, jax.memory.Space | None) for place in op.params["devices"]):
        return on_whole_arrays(op, operands)
    results = op.bind(*(shard.x for shard in operands))
    return [Shard(x, shard.lies) for x, shard in zip(results, operands, strict=True)]


ALWAYS = frozenset(["distribute"])  # also where all operands are whole
RULES: dict[str, Callable[[Operation, list[Shard]], list[Shard]]] = {
    **{name: functools.partial(_reduce, collective) for name, collective in REDUCTIONS.items()},
    "bitcast_convert_type": _bitcast,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "slice": _slice,
    "device_put": _device_put,
    "distribute": _distribute,
}
