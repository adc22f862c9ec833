"""How the matrices of a group reach the devices that compute them, and return."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from momentax.sharding._places import auto_axes
from momentax.sharding._plan import Group, Layout, Plan
from momentax.varying import gather


def gathered(
    plan: Plan,
    group: Group,
    layouts: Sequence[Layout],
    arrays: Sequence[jax.Array],
    wire_dtype: Any = None,
    hidden: Any = None,
):
    """The matrices (k, in, out) of a group that this device computes, and the way back to its shards."""
    move, gathers, split = map(plan.number, (group.move, group.gather, group.split))
    wire = wire_dtype if wire_dtype is not None and group.collectives else group.dtype
    unfolded = [_stacked(arrays[member], layouts[member], wire) for member in group.members]
    x = concatenated([stack for stack, _ in unfolded])  # (count, *local)
    local = x.shape[1:]
    runs = _runs(group)
    x = _dealt(x, runs)
    if hidden is not None:
        x = _laid(x, hidden, 0)
    # buffers of all devices, which lie in the order of the mesh: (split..., move..., k, *local)
    devices = tuple(plan.sizes[name] for name in group.dealt)
    turned = [*map(group.dealt.index, group.split + group.move), *range(len(devices), x.ndim + len(devices))]
    x = x.reshape(*devices, -1, *local).transpose(turned)
    if split > 1:
        x = _own(x.reshape(split, -1, *local), group.split)
    if move > 1:
        x = jax.lax.all_to_all(x.reshape(-1, *local), group.move, 0, 0, tiled=True)
    if gathers > 1:
        x = gather(x, group.gather, tiled=False)
    # (gather..., move..., k, *local) -> (k, mesh axes of the first dim..., its local length, ...)
    names = group.gather + group.move
    apart = (*(plan.sizes[name] for name in names), group.capacity, *local)
    order = [len(names)]
    for d, (_, shards) in enumerate(group.dims):
        order += [*map(names.index, shards), len(names) + 1 + d]
    whole = tuple(length for length, _ in group.dims)
    x = x.reshape(apart).transpose(order).reshape(group.capacity, *whole)
    sides = (0, *(1 + d for d in group.ins), *(1 + d for d in group.outs))
    sorted_by_side = [group.capacity, *(whole[d] for d in (*group.ins, *group.outs))]
    x = x.transpose(sides).astype(group.dtype)
    if group.blocks > 1:  # side by side along the last output: (k, ins..., outs..., blocks, rest) -> (k, blocks, ...)
        x = x.reshape(*sorted_by_side[:-1], group.blocks, -1)
        parted = x.shape
        x = jnp.moveaxis(x, -2, 1)
    matrices = x.reshape(-1, *group.matrix)

    def back(y):
        y = y.astype(wire)
        if group.blocks > 1:
            y = jnp.moveaxis(y.reshape(group.capacity, group.blocks, *parted[1:-2], parted[-1]), 1, -2)
        y = (
            y.reshape(sorted_by_side)
            .transpose(_inverse(sides))
            .reshape([apart[axis] for axis in order])
            .transpose(_inverse(order))
        )
        if gathers > 1:
            y = _own(y.reshape(gathers, -1, *y.shape[len(names) :]), group.gather)
        if move > 1:
            y = jax.lax.all_to_all(y.reshape(-1, *local), group.move, 0, 0, tiled=True)
        y = y.reshape(-1, *local)
        if hidden is not None:  # both: the compiler would carry one of them into the function
            y = _laid(_laid(y, hidden, 0), hidden, 1)
        if split > 1:
            y = _gather_used(y, group, plan)
        y = y.reshape(*(plan.sizes[name] for name in group.split + group.move), -1, *local)
        y = y.transpose(_inverse(turned)).reshape(-1, *local)
        y = _collected(y, runs)
        results, start = [], 0
        for stack, unstack in unfolded:
            results.append(unstack(y[start : start + len(stack)]).astype(group.dtype))
            start += len(stack)
        return results

    return matrices, back


def dealt_numbers(plan: Plan, group: Group, layouts: Sequence[Layout], arrays: Sequence[jax.Array]):
    """Numbers (matrices, ...) of the matrices that this device computes, and the way back to all of them."""
    shapes, parts = [], []
    for member in group.members:
        lies = [
            tuple(n for n in layouts[member].shards[axis] if n in plan.sizes) for axis in layouts[member].batch_axes
        ]
        x = arrays[member]
        stack = plan.stacks[member]
        x = x.reshape(*stack, *x.shape[1:])
        for axis, names in enumerate(lies):
            if names:
                x = _own(x.reshape(*x.shape[:axis], plan.number(names), -1, *x.shape[axis + 1 :]), names, axis)
        shapes.append((lies, x.shape[: len(stack)]))
        parts.append(x.reshape(-1, *arrays[member].shape[1:]))
    runs, rest = _runs(group), parts[0].shape[1:]
    x = _dealt(concatenated(parts), runs)
    if group.dealt:
        x = _own(x.reshape(plan.number(group.dealt), -1, *rest), group.dealt)

    def back(y):
        if group.dealt:
            y = gather(y, group.dealt)
        y = _collected(y, runs)
        results, start = [], 0
        for (lies, local), part in zip(shapes, parts, strict=True):
            z = y[start : start + len(part)].reshape(*local, *rest)
            start += len(part)
            for axis, names in enumerate(lies):
                z = gather(z, names, axis) if names else z
            results.append(z.reshape(-1, *rest))
        return results

    return x, back


def _gather_used(y: jax.Array, group: Group, plan: Plan) -> jax.Array:
    """The places of all copies, of which only those are gathered that some copy uses; the others are zero."""
    used = group.used(plan.sizes).reshape(-1)
    edges = [0, *(np.flatnonzero(used[1:] != used[:-1]) + 1).tolist(), len(used)]
    pieces = list(itertools.pairwise(edges))
    y = concatenated([y[start:end] for start, end in pieces if used[start]])
    y = gather(y, group.split, tiled=False)  # (copies, used places, ...)
    parts, start = [], 0
    for first, end in pieces:
        if used[first]:
            parts.append(y[:, start : start + end - first])
            start += end - first
        else:
            parts.append(jnp.zeros((len(y), end - first, *y.shape[2:]), y.dtype))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


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
    return concatenated(parts)


def _collected(y: jax.Array, runs: list[tuple[int, int]]) -> jax.Array:
    """The matrices without empty places."""
    ends = list(itertools.accumulate(real + empty for real, empty in runs))
    return concatenated([y[end - real - empty : end - empty] for (real, empty), end in zip(runs, ends, strict=True)])


def concatenated(parts: Sequence[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _laid(x: jax.Array, mesh: Any, first: int) -> jax.Array:
    """x, which the compiler is asked to shard over the whole mesh: matrices apart (0), or their entries (1)."""
    names = auto_axes(mesh)
    devices = math.prod(mesh.shape[name] for name in names)
    even = (axis for axis in range(first, x.ndim) if x.shape[axis] % devices == 0)
    cut = next(even, first) if first else 0  # the compiler pads the number of matrices
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*[None] * cut, names)))


def _own(x: jax.Array, names: Sequence[str], axis: int = 0) -> jax.Array:
    """The entry along an axis that belongs to this device of the mesh axes."""
    return jax.lax.dynamic_index_in_dim(x, jax.lax.axis_index(tuple(names)), axis, keepdims=False)


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=list(order).__getitem__)
