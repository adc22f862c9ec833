"""Applies a function of matrices to many of them at once: whole ones, those of one shape in one batch."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.sharding import NamedSharding, PartitionSpec

from momentax.sharding._places import Place, auto_axes, stated, tell_hidden
from momentax.sharding._plan import Cost, Group, Layout, Plan, plan_matrices

Function = Callable[[jax.Array], jax.Array]


distribute_p = Primitive("distribute")  # an operation of its own where a program is traced for shards
distribute_p.multiple_results = True
distribute_p.def_abstract_eval(lambda *arrays, run, lies: list(arrays))


def distribute(
    name: str,
    function: Function,
    arrays: Sequence[jax.Array],
    axes: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]],
    places: Sequence[Place],
    *,
    transposes: bool = False,
    cost: Cost | None = None,
    wire_dtype: Any = None,
) -> list[jax.Array]:
    """`function` of every matrix, each computed whole on one device (or as few as there must be), in few batches.

    Over a mesh, matrices of one shape, dtype and placement are dealt to the devices by one all-to-all, computed there
    without any communication, and sent back by another one: see `Plan`.

    Args:
      name: of the public function, for the notice.
      function: from matrices (k, in, out) to matrices of the same shape and dtype, each by itself, and zero to zero; it
        knows no mesh.
      arrays: any number of axes each.
      axes: for each array its batch, input and output axes; merged axes are in this order, major first.
      places: where each lies.
      transposes: whether function(x') = function(x)', so that matrices (m, n) and (n, m) may share a batch.
      cost: of one matrix (in, out), in any unit: what is balanced over devices. None: that of Newton-Schulz.
      wire_dtype: dtype in which matrices travel, where they do; None is their own.

    Returns:
      Arrays like `arrays`, lying as they do.

    Example:
      >>> [y] = distribute("example", lambda x: 2 * x, [jnp.ones((1, 2))], [((), (0,), (1,))], [Place()])
      >>> print(y)
      [[2. 2.]]
    """
    if not arrays:
        return []
    layouts = [
        Layout(tuple(batch), tuple(ins), tuple(outs), place.shards(x.ndim))
        for x, (batch, ins, outs), place in zip(arrays, axes, places, strict=True)
    ]
    place = next((place for place in places if place.mesh is not None), Place())
    hidden = next((place.hidden for place in places if place.hidden is not None), None)
    assumed = stated().layout == "fully_sharded"
    if hidden is not None and not assumed:
        tell_hidden(name)
    wire_dtype = wire_dtype if stated().wire_dtype is None else stated().wire_dtype
    plan = plan_matrices(arrays, layouts, place.sizes, transposes=transposes, cost=cost)
    run = functools.partial(_run, function, plan, layouts, wire_dtype, hidden if assumed else None)
    if place.mesh is None:
        return list(run(*arrays))
    if place.inside:
        return distribute_p.bind(*arrays, run=run, lies=tuple(layout.shards for layout in layouts))
    specs = tuple(place.spec for place in places)
    # results that are gathered are the same on all devices, which types cannot always tell
    names = set(place.sizes)
    on_mesh = jax.shard_map(run, mesh=place.mesh, in_specs=specs, out_specs=specs, axis_names=names, check_vma=False)
    return list(on_mesh(*arrays))


def _run(function: Function, plan: Plan, layouts: Sequence[Layout], wire_dtype: Any, hidden: Any, *arrays: jax.Array):
    """What each device does with its shards."""
    there = [_gathered(plan, group, layouts, arrays, wire_dtype, hidden) for group in plan.groups]
    whole = [array for array, _ in there]
    results: list[Any] = [None] * len(arrays)
    dealt = list(dict.fromkeys(group.dealt for group in plan.groups))
    new: dict[int, jax.Array] = {}
    for axes in dealt:
        positions = [p for p, group in enumerate(plan.groups) if group.dealt == axes]
        batches = [batch for batch in plan.batches if batch[0] in positions]
        new |= zip(positions, _computed(function, plan, positions, batches, [whole[p] for p in positions]), strict=True)
    for position, group in enumerate(plan.groups):
        for member, result in zip(group.members, there[position][1](new[position]), strict=True):
            results[member] = result
    return tuple(results)


def _computed(function, plan, positions, batches, stacks):
    """The function of the matrices that this device holds; devices of different holdings take different branches."""
    held = {p: plan.groups[p].held for p in positions}
    kinds = list(dict.fromkeys(zip(*held.values(), strict=True)))

    def branch(kind, stacks):
        number, stack = dict(zip(positions, kind, strict=True)), dict(zip(positions, stacks, strict=True))
        new = {}
        for batch in batches:
            shape = plan.groups[batch[0]].matrix
            turned = {p: plan.groups[p].matrix != shape for p in batch}
            members = [stack[p][: number[p]].mT if turned[p] else stack[p][: number[p]] for p in batch if number[p]]
            joined = function(members[0] if len(members) == 1 else jnp.concatenate(members)) if members else None
            start = 0
            for p in batch:
                result = stack[p] if joined is None else joined[start : start + number[p]]
                start += number[p]
                result = result.mT if joined is not None and turned[p] else result
                # what is left of the buffer is zero before and after
                new[p] = jnp.concatenate([result, stack[p][number[p] :]]) if joined is not None else stack[p]
        return tuple(new[p] for p in positions)

    if len(kinds) == 1:
        return branch(kinds[0], stacks)
    which = jnp.array([kinds.index(kind) for kind in zip(*held.values(), strict=True)], jnp.int32)
    device = which[jax.lax.axis_index(plan.groups[positions[0]].dealt)]
    return jax.lax.switch(device, [functools.partial(branch, kind) for kind in kinds], stacks)


def _gathered(
    plan: Plan,
    group: Group,
    layouts: Sequence[Layout],
    arrays: Sequence[jax.Array],
    wire_dtype: Any,
    hidden: Any,
):
    """The matrices (k, in, out) of a group that this device computes, and the way back to its shards."""
    move, gather, split = map(plan.number, (group.move, group.gather, group.split))
    travels = move * gather * split > 1
    wire = group.dtype if wire_dtype is None or not travels else wire_dtype
    unfolded = [_stacked(arrays[member], layouts[member], wire) for member in group.members]
    x = _concatenated([stack for stack, _ in unfolded])  # (count, *local)
    local = x.shape[1:]
    runs = _runs(group)
    x = _dealt(x, runs)
    if hidden is not None:
        x = _laid(x, hidden, 0)
    if split > 1:
        x = _own(x.reshape(split, -1, *local), group.split)
    if move > 1:
        x = jax.lax.all_to_all(x.reshape(move, -1, *local), group.move, 0, 0)
    if gather > 1:
        x = jax.lax.all_gather(x, group.gather, to="invarying")
    # (gather..., move..., k, *local) -> (k, mesh axes of the first dim..., its local length, ...)
    names = group.gather + group.move
    apart = (*(plan.sizes[name] for name in names), group.capacity, *local)
    order = [len(names)]
    for d, (_, shards) in enumerate(group.dims):
        order += [*map(names.index, shards), len(names) + 1 + d]
    whole = tuple(length for length, _ in group.dims)
    x = x.reshape(apart).transpose(order).reshape(group.capacity, *whole)
    sides = (0, *(1 + d for d in group.ins), *(1 + d for d in group.outs))
    matrices = x.transpose(sides).reshape(group.capacity, *group.matrix).astype(group.dtype)

    def back(y):
        y = y.astype(wire).reshape(group.capacity, *(whole[d] for d in (*group.ins, *group.outs)))
        y = y.transpose(_inverse(sides)).reshape([apart[axis] for axis in order]).transpose(_inverse(order))
        if gather > 1:
            y = _own(y.reshape(gather, -1, *y.shape[len(names) :]), group.gather)
        if move > 1:
            y = jax.lax.all_to_all(y.reshape(move, -1, *local), group.move, 0, 0)
        y = y.reshape(-1, *local)
        if hidden is not None:  # both: the compiler would carry one of them into the function
            y = _laid(_laid(y, hidden, 0), hidden, 1)
        if split > 1:
            y = jax.lax.all_gather(y, group.split, tiled=True, to="invarying")
        y = _collected(y, runs)
        results, start = [], 0
        for stack, unstack in unfolded:
            results.append(unstack(y[start : start + len(stack)]).astype(group.dtype))
            start += len(stack)
        return results

    return matrices, back


def _stacked(x: jax.Array, layout: Layout, dtype: Any):
    """A shard as (matrices, *axes of a matrix as they lie), and the way back."""
    order = layout.batch_axes + layout.matrix_axes
    matrix = [x.shape[axis] for axis in layout.matrix_axes]
    number = math.prod(x.shape[axis] for axis in layout.batch_axes)
    shape = [x.shape[axis] for axis in order]
    stack = x.transpose(order).reshape(number, *matrix).astype(dtype)
    return stack, lambda y: y.reshape(shape).transpose(_inverse(order))


def _runs(group: Group) -> list[tuple[int, int]]:
    """The buffers of all devices, one behind the other, as runs of (matrices, empty places)."""
    runs: list[tuple[int, int]] = []
    left = group.count
    for held in group.held:
        real = min(held, left)
        left -= real
        empty = group.capacity - real
        if runs and real and not runs[-1][1]:
            runs[-1] = (runs[-1][0] + real, empty)
        elif runs and not real:
            runs[-1] = (runs[-1][0], runs[-1][1] + empty)
        else:
            runs.append((real, empty))
    return runs


def _dealt(x: jax.Array, runs: list[tuple[int, int]]) -> jax.Array:
    """Matrices in the buffers of the devices that compute them, the rest of which is zero."""
    parts, start = [], 0
    for real, empty in runs:
        part = x[start : start + real]
        parts.append(jnp.pad(part, [(0, empty)] + [(0, 0)] * (x.ndim - 1)) if empty else part)
        start += real
    return _concatenated(parts)


def _collected(y: jax.Array, runs: list[tuple[int, int]]) -> jax.Array:
    """The matrices without empty places."""
    ends = list(itertools.accumulate(real + empty for real, empty in runs))
    return _concatenated([y[end - real - empty : end - empty] for (real, empty), end in zip(runs, ends, strict=True)])


def _concatenated(parts: Sequence[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _laid(x: jax.Array, mesh: Any, first: int) -> jax.Array:
    """x, which the compiler is asked to shard over the whole mesh: matrices apart (0), or their entries (1)."""
    names = auto_axes(mesh)
    devices = math.prod(mesh.shape[name] for name in names)
    even = (axis for axis in range(first, x.ndim) if x.shape[axis] % devices == 0)
    cut = next(even, first) if first else 0  # the compiler pads the number of matrices
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*[None] * cut, names)))


def _own(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """The entry that belongs to this device of the mesh axes."""
    return jax.lax.dynamic_index_in_dim(x, jax.lax.axis_index(tuple(axes)), 0, keepdims=False)


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=list(order).__getitem__)
