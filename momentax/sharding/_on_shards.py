"""Runs a function written for whole arrays on their shards, inside `jax.shard_map` or `jax.pmap`.

The function is traced on shapes of whole arrays, and the program that results is run operation by operation on shards:
what acts entry by entry acts on shards, sums become sums over devices, and numbers that are the same everywhere are
computed everywhere. Any other operation gets its operands whole, gathered from the devices: right, at a price.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from momentax.sharding._shard_rules import (
    ALWAYS,
    ELEMENTWISE,
    RULES,
    Lies,
    Operation,
    Shard,
    common,
    devices_of,
    entry_by_entry,
    everywhere,
    lay,
    on_whole_arrays,
    only,
    whole,
)
from momentax.varying import checked, gather, vary_alike, vary_over, varying_axes

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}


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
    alone = tuple(name for name, size in sizes.items() if size == 1)  # they divide nothing, but types know them
    sizes = {name: size for name, size in sizes.items() if size > 1}
    flat, treedef = jax.tree.flatten(args)
    shards = [Shard(_without(jnp.asarray(x), alone), only(at, sizes)) for x, at in zip(flat, lies, strict=True)]
    structs = [jax.ShapeDtypeStruct(whole_shape(s.x.shape, s.lies, sizes), s.x.dtype) for s in shards]
    memories = [jax.typeof(s.x).memory_space for s in shards]

    def program_of(*flat):
        host = jax.memory.Space.Host
        held = [jax.device_put(x, at) if at == host else x for x, at in zip(flat, memories, strict=True)]
        return function(*jax.tree.unflatten(treedef, held))  # shapes say nothing of memories

    program, shapes = jax.make_jaxpr(program_of, return_shape=True)(*structs)
    results = _evaluate(program, shards, sizes)
    targets = [only(at, sizes) for at in results_lie(shapes)]
    placed = [lay(result, at, sizes).x for result, at in zip(results, targets, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(shapes), placed)


def _without(x: jax.Array, names: Sequence[str]) -> jax.Array:
    """x, typed as the same along mesh axes of one device."""
    varying = tuple(name for name in names if name in varying_axes(x))
    return gather(x, varying, tiled=False).reshape(x.shape) if varying else x


def whole_shape(shape: Sequence[int], lies: Lies, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an array, given that of its shards."""
    return tuple(n * devices_of(names, sizes) for n, names in zip(shape, lies, strict=True))


def _evaluate(program: Any, shards: Sequence[Shard], sizes: Mapping[str, int]) -> list[Shard]:
    """The results of a closed jaxpr."""
    known: dict[Any, Shard] = {}

    def read(atom):
        return everywhere(atom.val) if hasattr(atom, "val") else known[atom]

    jaxpr = program.jaxpr
    known |= zip(jaxpr.constvars, map(everywhere, program.consts), strict=True)
    known |= zip(jaxpr.invars, shards, strict=True)
    for eqn in jaxpr.eqns:
        operands = list(map(read, eqn.invars))
        known |= zip(eqn.outvars, _operate(eqn, operands, sizes), strict=True)
    return list(map(read, jaxpr.outvars))


def _operate(eqn: Any, operands: list[Shard], sizes: Mapping[str, int]) -> list[Shard]:
    name = eqn.primitive.name
    if name in CALLS:
        inner = eqn.params[CALLS[name]]
        return _evaluate(inner, operands, sizes)

    def bind(*xs, **changed):
        params = eqn.primitive.get_bind_params({**eqn.params, **changed})
        results = eqn.primitive.bind(*vary_alike(xs), **params)  # operations ask for one type
        return list(results) if eqn.primitive.multiple_results else [results]

    shapes = [tuple(atom.aval.shape) for atom in eqn.invars]
    results = [var.aval for var in eqn.outvars]
    operation = Operation(sizes, shapes, results, eqn.params, bind)
    if name == "cond":
        return _switch(operation, operands)
    if name not in ALWAYS and _deals(eqn.params):
        raise NotImplementedError(
            f"a matrix method runs inside a {name} inside an optimizer inside jax.shard_map, where it cannot be dealt "
            f"to the devices: give on_mesh the transformation that is in the {name}, or call the update outside of "
            "jax.shard_map."
        )
    if name not in ALWAYS and not any(names for shard in operands for names in shard.lies):
        return list(map(everywhere, bind(*(shard.x for shard in operands))))
    rule = RULES.get(name) or (entry_by_entry if name in ELEMENTWISE else on_whole_arrays)
    return rule(operation, operands)


def _deals(params: Any) -> bool:
    """Whether a program among the parameters of an operation deals matrices."""
    inner = [x for value in params.values() for x in (value if isinstance(value, tuple | list) else [value])]
    programs = [getattr(x, "jaxpr", x) for x in inner if hasattr(getattr(x, "jaxpr", x), "eqns")]
    return any(eqn.primitive.name in ALWAYS or _deals(eqn.params) for program in programs for eqn in program.eqns)


def _switch(op: Operation, operands: list[Shard]) -> list[Shard]:
    """Branches run on shards; their results are laid alike."""
    index, *operands = operands
    branches = op.params["branches"]
    lies = [shard.lies for shard in operands]

    def run(branch, *xs):
        return _evaluate(branch, [Shard(x, lie) for x, lie in zip(xs, lies, strict=True)], op.sizes)

    found: list[list[Lies]] = []
    for branch in branches:  # once, to see where results come to lie

        def look(*xs, branch=branch):
            found.append([result.lies for result in run(branch, *xs)])

        jax.eval_shape(look, *(shard.x for shard in operands))
    targets = [common([Shard(None, lie) for lie in column]) for column in zip(*found, strict=True)]

    def laid(branch, *xs):
        results = run(branch, *xs)
        return [_of_one_type(lay(r, at, op.sizes)) for r, at in zip(results, targets, strict=True)]

    functions = [functools.partial(laid, branch) for branch in branches]
    results = jax.lax.switch(whole(index, op.sizes), functions, *(shard.x for shard in operands))
    return [Shard(x, at) for x, at in zip(results, targets, strict=True)]


def _of_one_type(shard: Shard) -> Any:
    """The entries, typed as varying where they lie on shards: two branches must have one type."""
    names = {name for entry in shard.lies for name in entry}
    return vary_over(shard.x, names) if names and checked(names) else shard.x
