"""Runs a function written for whole arrays on their shards, inside `jax.shard_map` or `jax.pmap`.

The function is traced on shapes of whole arrays, and the program that results is run operation by operation on shards:
what acts entry by entry acts on shards, sums become sums over devices, and numbers that are the same everywhere are
computed everywhere. Any other operation gets its operands whole, gathered from the devices: right, at a price.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

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
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
REDUCTIONS = {
    "reduce_sum": jax.lax.psum,
    "reduce_max": jax.lax.pmax,
    "reduce_min": jax.lax.pmin,
    "reduce_and": lambda x, names: jax.lax.pmin(x.astype(jnp.int32), names).astype(x.dtype),
    "reduce_or": lambda x, names: jax.lax.pmax(x.astype(jnp.int32), names).astype(x.dtype),
}


def on_shards(function: Callable[..., Any], sizes: Mapping[str, int], args: Any, lies: Any, results_lie: Any) -> Any:
    """`function(*args)` for whole arrays of which `args` are this device's shards.

    Args:
      function: from trees of arrays to a tree of arrays; it is traced on whole shapes.
      sizes: devices of each mesh axis that is manual here.
      args: tuple of trees of shards.
      lies: for each leaf of `args`, in flattening order, where it lies.
      results_lie: from the result's tree of shapes to where each of its leaves should lie.

    Returns:
      The shards of the result.
    """
    flat, treedef = jax.tree.flatten(args)
    shards = [Shard(jnp.asarray(x), at) for x, at in zip(flat, lies, strict=True)]
    whole = [jax.ShapeDtypeStruct(whole_shape(s.x.shape, s.lies, sizes), s.x.dtype) for s in shards]
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*jax.tree.unflatten(treedef, whole))
    results = _evaluate(program, shards, sizes)
    targets = results_lie(shapes)
    placed = [_lay(result, at, sizes).x for result, at in zip(results, targets, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(shapes), placed)


def whole_shape(shape: Sequence[int], lies: Lies, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an array, given that of its shards."""
    return tuple(n * _devices(names, sizes) for n, names in zip(shape, lies, strict=True))


def _devices(names: Sequence[str], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[name] for name in names)


def _evaluate(program: Any, shards: Sequence[Shard], sizes: Mapping[str, int]) -> list[Shard]:
    """The results of a closed jaxpr."""
    known: dict[Any, Shard] = {}

    def read(atom):
        return _everywhere(atom.val) if isinstance(atom, Literal) else known[atom]

    jaxpr = program.jaxpr
    known |= zip(jaxpr.constvars, map(_everywhere, program.consts), strict=True)
    known |= zip(jaxpr.invars, shards, strict=True)
    for eqn in jaxpr.eqns:
        operands = list(map(read, eqn.invars))
        known |= zip(eqn.outvars, _operate(eqn, operands, sizes), strict=True)
    return list(map(read, jaxpr.outvars))


def _everywhere(x: Any) -> Shard:
    return Shard(x, NOWHERE * jnp.ndim(x))


def _operate(eqn: Any, operands: list[Shard], sizes: Mapping[str, int]) -> list[Shard]:
    name = eqn.primitive.name
    if name in CALLS:
        inner = eqn.params[CALLS[name]]
        return _evaluate(inner, operands, sizes)

    def bind(*xs, **changed):
        params = eqn.primitive.get_bind_params({**eqn.params, **changed})
        results = eqn.primitive.bind(*_alike(xs), **params)
        return list(results) if eqn.primitive.multiple_results else [results]

    shapes = [tuple(atom.aval.shape) for atom in eqn.invars]
    results = [var.aval for var in eqn.outvars]
    operation = Operation(sizes, shapes, results, eqn.params, bind)
    if not any(names for shard in operands for names in shard.lies) and name not in ALWAYS:
        return list(map(_everywhere, bind(*(shard.x for shard in operands))))
    rule = RULES.get(name) or (_entry_by_entry if name in ELEMENTWISE else _on_whole_arrays)
    return rule(operation, operands)


def _alike(xs: Sequence[Any]) -> list[Any]:
    """Operands that types say to vary over the same mesh axes, which operations ask for."""
    varying = [jax.typeof(x).manual_axis_type.varying for x in xs]
    union = frozenset().union(*varying)
    return [
        jax.lax.pcast(x, tuple(union - own), to="varying") if union - own else x
        for x, own in zip(xs, varying, strict=True)
    ]


def _lay(shard: Shard, lies: Lies, sizes: Mapping[str, int]) -> Shard:
    """The same array lying otherwise: gathered along axes that change, then cut."""
    x = shard.x
    for axis, (now, then) in enumerate(zip(shard.lies, lies, strict=True)):
        if now and now != then:
            x = jax.lax.all_gather(x, now, axis=axis, tiled=True, to="invarying")
    for axis, (now, then) in enumerate(zip(shard.lies, lies, strict=True)):
        if then and now != then:
            size = x.shape[axis] // _devices(then, sizes)
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(then) * size, size, axis)
    return Shard(x, lies)


def _whole(shard: Shard, sizes: Mapping[str, int]) -> Any:
    return _lay(shard, NOWHERE * len(shard.lies), sizes).x


def _common(operands: Sequence[Shard]) -> Lies:
    """Where operands of one shape should meet: on shards, wherever one of them is."""
    rank = max(len(shard.lies) for shard in operands)
    full = [shard.lies for shard in operands if len(shard.lies) == rank]
    lies: list[tuple[str, ...]] = []
    for axis in range(rank):
        used = {name for names in lies for name in names}
        found = (lie[axis] for lie in full if lie[axis] and not used & set(lie[axis]))
        lies.append(next(found, ()))
    return tuple(lies)


def _entry_by_entry(op: Operation, operands: list[Shard]) -> list[Shard]:
    lies = _common(operands)
    laid = []
    for shard, shape in zip(operands, op.shapes, strict=True):  # axes of length 1 are repeated along the others'
        own = tuple(names if n > 1 else () for names, n in zip(lies, shape, strict=False))
        laid.append(_lay(shard, own, op.sizes).x)
    return [Shard(result, lies) for result in op.bind(*laid)]


def _on_whole_arrays(op: Operation, operands: list[Shard]) -> list[Shard]:
    return list(map(_everywhere, op.bind(*(_whole(shard, op.sizes) for shard in operands))))


def _reduce(collective: Callable[..., Any], op: Operation, operands: list[Shard]) -> list[Shard]:
    [shard] = operands
    axes = op.params["axes"]
    names = tuple(name for axis in axes for name in shard.lies[axis])
    [result] = op.bind(shard.x)
    result = collective(result, names) if names else result
    return [Shard(result, tuple(names for axis, names in enumerate(shard.lies) if axis not in axes))]


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
        return _on_whole_arrays(op, operands)
    before, after = list(NOWHERE * len(old)), list(NOWHERE * len(new))
    for ins, outs in _blocks(old, new):
        major = next((axis for axis in ins if old[axis] > 1), None)
        target = next((axis for axis in outs if new[axis] > 1), None)
        if major is not None and target is not None and new[target] % _devices(shard.lies[major], op.sizes) == 0:
            before[major] = after[target] = shard.lies[major]
    laid = _lay(shard, tuple(before), op.sizes)
    sizes = tuple(n // _devices(names, op.sizes) for n, names in zip(new, after, strict=True))
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
    lies = tuple(() if axis == along else names for axis, names in enumerate(_common(operands)))
    return [Shard(op.bind(*(_lay(shard, lies, op.sizes).x for shard in operands))[0], lies)]


def _slice(op: Operation, operands: list[Shard]) -> list[Shard]:
    """Axes that are cut are gathered first."""
    [shard], [shape] = operands, op.shapes
    start, limit, strides = (op.params[name] for name in ("start_indices", "limit_indices", "strides"))
    steps = strides or (1,) * len(shape)
    full = [start[axis] == 0 and limit[axis] == n and steps[axis] == 1 for axis, n in enumerate(shape)]
    lies = tuple(names if keep else () for names, keep in zip(shard.lies, full, strict=True))
    x = _lay(shard, lies, op.sizes).x
    ends = tuple(x.shape[axis] if keep else limit[axis] for axis, keep in enumerate(full))
    return [Shard(op.bind(x, limit_indices=ends)[0], lies)]


def _switch(op: Operation, operands: list[Shard]) -> list[Shard]:
    """Branches run on shards; their results are laid alike."""
    index, *operands = operands
    branches = op.params["branches"]
    lies = [shard.lies for shard in operands]

    def run(branch, *xs):
        return _evaluate(branch, [Shard(x, lie) for x, lie in zip(xs, lies, strict=True)], op.sizes)

    found: list[list[Shard]] = []
    for branch in branches:  # once, to see where results come to lie
        jax.eval_shape(lambda *xs, branch=branch: found.append(run(branch, *xs)), *(shard.x for shard in operands))
    targets = [_common([Shard(None, result.lies) for result in results]) for results in zip(*found, strict=True)]

    def laid(branch, *xs):
        results = run(branch, *xs)
        return [_varying(_lay(r, at, op.sizes)) for r, at in zip(results, targets, strict=True)]

    functions = [functools.partial(laid, branch) for branch in branches]
    results = jax.lax.switch(_whole(index, op.sizes), functions, *(shard.x for shard in operands))
    return [Shard(x, at) for x, at in zip(results, targets, strict=True)]


def _varying(shard: Shard) -> Any:
    """The entries, typed as varying where they lie on shards: two branches must have one type."""
    names = {name for entry in shard.lies for name in entry}
    own = jax.typeof(shard.x).manual_axis_type.varying
    return jax.lax.pcast(shard.x, tuple(names - own), to="varying") if own and names - own else shard.x


def _distribute(op: Operation, operands: list[Shard]) -> list[Shard]:
    laid = [_lay(shard, lies, op.sizes) for shard, lies in zip(operands, op.params["lies"], strict=True)]
    results = op.params["run"](*(shard.x for shard in laid))
    return [Shard(x, shard.lies) for x, shard in zip(results, laid, strict=True)]


ALWAYS = frozenset(["distribute"])  # also where all operands are whole
RULES: dict[str, Callable[[Operation, list[Shard]], list[Shard]]] = {
    **{name: functools.partial(_reduce, collective) for name, collective in REDUCTIONS.items()},
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "slice": _slice,
    "cond": _switch,
    "distribute": _distribute,
}
