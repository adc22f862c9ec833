"""Which matrices each device computes, and what travels for it: decided from shapes and partitions alone."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Cost = Callable[[int, int], float]
Dim = tuple[int, tuple[str, ...]]  # length of an axis, and the mesh axes over which it is sharded
WORTH_BRANCHES = 1.1  # by how much branches must lower the load of the busiest device
MANY_BRANCHES = 8  # each is compiled by itself


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array is read as matrices, and where it lies.

    Attributes:
      batch_axes: along which matrices are stacked.
      in_axes: whose entries are the rows of a matrix.
      out_axes: whose entries are its columns.
      shards: for each axis the mesh axes over which it is sharded, major first.
    """

    batch_axes: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    shards: tuple[tuple[str, ...], ...]

    @property
    def matrix_axes(self) -> tuple[int, ...]:
        """The axes of a matrix as they lie in the array."""
        return tuple(sorted(self.in_axes + self.out_axes))


@dataclasses.dataclass(frozen=True)
class Group:
    """Matrices of one shape, dtype and placement, which travel together.

    A matrix is split over the mesh axes of its dims. Those in `move` exchange parts for whole matrices (all-to-all),
    those in `gather` give every device the same ones (all-gather), and of the mesh axes that hold copies, those in
    `split` take a share each and put the results together (all-gather).

    Attributes:
      members: positions of the arrays.
      dims: of one matrix, as it lies in the arrays: length, and mesh axes over which it is sharded.
      ins: which of the dims are inputs, major first.
      outs: which are outputs.
      dtype: of the arrays.
      count: matrices of a device's shards: along stacked axes that are sharded, devices have their own.
      move: mesh axes, in the order of the dims.
      gather: mesh axes, in the order of the dims.
      split: mesh axes.
      stacked: mesh axes over which stacks are sharded, which need nothing.
      held: for each device of `split` and `move` (major to minor) how many matrices it computes.
    """

    members: tuple[int, ...]
    dims: tuple[Dim, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    dtype: Any
    count: int
    move: tuple[str, ...]
    gather: tuple[str, ...]
    split: tuple[str, ...]
    stacked: tuple[str, ...]
    held: tuple[int, ...]

    @property
    def capacity(self) -> int:
        """Matrices of the device that computes most: the others' buffers are as long."""
        return max(self.held)

    @property
    def matrix(self) -> tuple[int, int]:
        """Inputs and outputs of one matrix."""
        fan_in, fan_out = (math.prod(self.dims[d][0] for d in side) for side in (self.ins, self.outs))
        return fan_in, fan_out

    @property
    def dealt(self) -> tuple[str, ...]:
        """The mesh axes whose devices compute different matrices."""
        return self.split + self.move


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many matrices are computed in few batches.

    Attributes:
      groups: what travels together.
      batches: for each batch the positions of its groups. Those whose matrices have another shape than the first one's
        are transposed.
      sizes: devices of each mesh axis; empty for one device, or where every device computes everything.
      stacks: lengths of the batch axes of each array.
    """

    groups: tuple[Group, ...]
    batches: tuple[tuple[int, ...], ...]
    sizes: Mapping[str, int]
    stacks: tuple[tuple[int, ...], ...]

    def number(self, axes: Sequence[str]) -> int:
        """Devices of several mesh axes."""
        return math.prod(self.sizes[axis] for axis in axes)

    def received(self, group: Group) -> int:
        """Entries that a device receives for a group, both ways, by bandwidth-optimal collectives."""
        return round(
            _received(
                math.prod(group.matrix) * group.capacity,
                *(self.number(names) for names in (group.move, group.gather, group.split)),
            )
        )


def plan_matrices(
    arrays: Sequence[Any],
    layouts: Sequence[Layout],
    sizes: Mapping[str, int] | None = None,
    *,
    transposes: bool = False,
    cost: Cost | None = None,
) -> Plan:
    """Groups matrices by shape, dtype and placement, and deals each group to as few devices as its number fills.

    The busiest device has as little to compute as whole matrices allow; of the ways that give that, a group takes the
    one for which least is received.

    Args:
      arrays: arrays or shapes with dtypes.
      layouts: of each.
      sizes: devices of each mesh axis; None or empty: every device computes everything.
      transposes: whether matrices (m, n) and (n, m) share a batch.
      cost: of one matrix (in, out), in any unit; None: max(in, out) min(in, out)^2, as for Newton-Schulz.

    >>> import jax
    >>> x = jax.ShapeDtypeStruct((8, 4, 6), "float32")
    >>> [group] = plan_matrices([x], [Layout((0,), (1,), (2,), ((), ("a",), ()))], {"a": 4}).groups
    >>> group.move, group.held
    (('a',), (2, 2, 2, 2))
    """
    sizes = {name: size for name, size in (sizes or {}).items() if size > 1}
    keys: dict[tuple, list[int]] = {}
    for position, (array, layout) in enumerate(zip(arrays, layouts, strict=True)):
        shards = [tuple(name for name in names if name in sizes) for names in layout.shards]
        axes = layout.matrix_axes
        dims = tuple((array.shape[axis], shards[axis]) for axis in axes)
        sides = tuple(tuple(map(axes.index, side)) for side in (layout.in_axes, layout.out_axes))
        stacked = tuple(name for axis in layout.batch_axes for name in shards[axis])
        keys.setdefault((dims, sides, np.dtype(array.dtype), stacked), []).append(position)
    groups = []
    for (dims, (ins, outs), dtype, stacked), members in keys.items():
        count = sum(math.prod(arrays[m].shape[axis] for axis in layouts[m].batch_axes) for m in members)
        count //= math.prod(sizes[name] for name in stacked)
        move, gather, split = _ways(dims, stacked, count, sizes)
        devices = math.prod(sizes[name] for name in move + split)
        held = (-(-count // devices),) * devices
        groups.append(Group(tuple(members), dims, ins, outs, dtype, count, move, gather, split, stacked, held))
    groups = _balance(groups, cost or _newton_schulz)
    batches: dict[tuple, list[int]] = {}
    for position, group in enumerate(groups):
        shape = tuple(sorted(group.matrix)) if transposes else group.matrix
        batches.setdefault((shape, group.dtype, group.dealt, group.stacked), []).append(position)
    stacks = [tuple(x.shape[axis] for axis in layout.batch_axes) for x, layout in zip(arrays, layouts, strict=True)]
    return Plan(tuple(groups), tuple(map(tuple, batches.values())), sizes, tuple(stacks))


def _newton_schulz(fan_in: int, fan_out: int) -> float:
    return max(fan_in, fan_out) * min(fan_in, fan_out) ** 2


def _ways(dims: Sequence[Dim], stacked: Sequence[str], count: int, sizes: Mapping[str, int]):
    """(move, gather, split): least to compute on the busiest device, then least to receive, then fewest collectives."""
    used = [name for _, names in dims for name in names]
    free = [name for name in sizes if name not in used and name not in stacked]
    entries = math.prod(length for length, _ in dims)

    def price(ways):
        move, gather, split = (math.prod(sizes[name] for name in names) for names in ways)
        capacity = -(-count // (move * split))
        collectives = 2 * (move > 1) + (gather > 1) + (split > 1)
        return capacity, _received(entries * capacity, move, gather, split), collectives

    options = [(move, gather, split) for move, gather in _partings(used) for split, _ in _partings(free)]
    return min(options, key=price)


def _partings(names: Sequence[str]):
    """All ways to part names in two."""
    for choice in itertools.product((True, False), repeat=len(names)):
        yield tuple(itertools.compress(names, choice)), tuple(n for n, c in zip(names, choice, strict=True) if not c)


def _received(computed: int, move: int, gather: int, split: int) -> float:
    """Entries that a device receives: of `move` both ways, of `gather` before, of `split` after."""
    there_and_back = 2 * computed * (move - 1) / (move * gather)
    return there_and_back + computed * (gather - 1) / gather + computed * (split - 1) / gather


def _balance(groups: list[Group], cost: Cost) -> list[Group]:
    """Gives devices that one group leaves idle to the others, where that is worth a branch for each kind of device."""
    balanced = list(groups)
    by_devices: dict[tuple[str, ...], list[int]] = {}
    for position, group in enumerate(groups):
        by_devices.setdefault(group.dealt, []).append(position)
    for positions in by_devices.values():
        prices = {p: cost(*groups[p].matrix) for p in positions}
        load = np.zeros(len(groups[positions[0]].held))
        dealt = {}
        for position in sorted(positions, key=lambda p: -prices[p]):  # longest processing time first
            each, over = divmod(groups[position].count, len(load))
            dealt[position] = np.full(len(load), each)
            load += each * prices[position]
            for device in np.argsort(load, kind="stable")[:over]:
                dealt[position][device] += 1
                load[device] += prices[position]
        branches = set(zip(*(dealt[p].tolist() for p in positions), strict=True))
        padded = sum(prices[p] * groups[p].capacity for p in positions)
        if len(branches) <= MANY_BRANCHES and padded > WORTH_BRANCHES * max(load):
            for position in positions:
                balanced[position] = dataclasses.replace(groups[position], held=tuple(dealt[position].tolist()))
    return balanced
