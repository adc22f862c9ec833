"""Which matrices each device computes, and what travels for it: decided from shapes and partitions alone."""

import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Cost = Callable[[int, int], float]
Dim = tuple[int, tuple[str, ...]]  # length of an axis, and the mesh axes over which it is sharded
FLOPS_PER_BYTE = 1000  # that an accelerator computes while it receives a byte; only ratios of times are asked for
WORTH_BRANCHES = 1.1  # by how much branches for different devices must shorten the time
MANY_BRANCHES = 8  # each is compiled by itself


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array is read as matrices, and where it lies.

    Attributes:
      batch_axes: along which matrices are stacked.
      in_axes: whose entries are the rows of a matrix.
      out_axes: whose entries are its columns.
      shards: for each axis the mesh axes over which it is sharded, major first.
      blocks: matrices that lie side by side along the last output axis, and travel together.
    """

    batch_axes: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    shards: tuple[tuple[str, ...], ...]
    blocks: int = 1

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
      blocks: matrices side by side along the last output, each computed by itself.
      dtype: of the arrays.
      count: matrices of a device's shards: along stacked axes that are sharded, devices have their own.
      move: mesh axes.
      gather: mesh axes.
      split: mesh axes.
      dealt: those of `split` and `move`, whose devices compute different matrices.
      stacked: mesh axes over which stacks are sharded, which need nothing.
      held: for each device of `dealt` (major to minor) how many matrices it computes.
    """

    members: tuple[int, ...]
    dims: tuple[Dim, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    blocks: int
    dtype: Any
    count: int
    move: tuple[str, ...]
    gather: tuple[str, ...]
    split: tuple[str, ...]
    dealt: tuple[str, ...]
    stacked: tuple[str, ...]
    held: tuple[int, ...]

    @property
    def capacity(self) -> int:
        """Matrices of the device that computes most: the others' buffers are as long."""
        return max(self.held)

    def used(self, sizes: Mapping[str, int]) -> Any:
        """For each place in the buffers of the devices of `move` whether any of the copies has a matrix there.

        Only these places are gathered over `split`. Shape: (devices of `move`, places of each).
        """
        left = np.cumsum([0, *self.held])[:-1]
        full = [min(held, max(0, self.count - before)) for held, before in zip(self.held, left, strict=True)]
        places = np.arange(self.capacity) < np.asarray(full)[:, None]
        places = places.reshape([sizes[name] for name in self.dealt] + [self.capacity])
        order = [*map(self.dealt.index, self.split + self.move), len(self.dealt)]
        copies = math.prod(sizes[name] for name in self.split)
        return np.any(places.transpose(order).reshape(copies, -1, self.capacity), axis=0)

    @property
    def collectives(self) -> int:
        """How many collectives the group takes."""
        return 2 * bool(self.move) + bool(self.gather) + bool(self.split)

    @property
    def matrix(self) -> tuple[int, int]:
        """Inputs and outputs of one matrix, as it is computed."""
        fan_in, fan_out = (math.prod(self.dims[d][0] for d in side) for side in (self.ins, self.outs))
        return fan_in, fan_out // self.blocks


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
        return round(_received(group, self.sizes))

    def busiest(self, cost: Cost) -> float:
        """FLOPs of the device that computes most."""
        return sum(_load(self.groups, positions, cost) for positions in by_devices(self.groups))


def plan_matrices(
    arrays: Sequence[Any],
    layouts: Sequence[Layout],
    sizes: Mapping[str, int] | None = None,
    *,
    transposes: bool = False,
    cost: Cost | None = None,
    share_copies: bool = True,
) -> Plan:
    """Groups matrices by shape, dtype and placement, and deals them to devices.

    Of the ways to do that, the one with the shortest time, estimated by what the busiest device computes and what each
    receives. A group by itself goes to as many devices as there are matrices, over as few mesh axes as that takes;
    several share the devices by longest processing time first, where that is worth a branch for each kind of device.

    Args:
      arrays: arrays or shapes with dtypes.
      layouts: of each.
      sizes: devices of each mesh axis; None or empty: every device computes everything.
      transposes: whether matrices (m, n) and (n, m) share a batch.
      cost: FLOPs of one matrix (in, out). None: those of five steps of Newton-Schulz.
      share_copies: whether devices that hold copies may share the work and gather the results.

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
        keys.setdefault((dims, sides, layout.blocks, np.dtype(array.dtype), stacked), []).append(position)
    cost = cost or newton_schulz_flops
    found = []
    for spread in (False, True):
        groups = []
        for (dims, (ins, outs), blocks, dtype, stacked), members in keys.items():
            count = sum(math.prod(arrays[m].shape[axis] for axis in layouts[m].batch_axes) for m in members)
            count //= math.prod(sizes[name] for name in stacked)
            whole = Group(tuple(members), dims, ins, outs, blocks, dtype, count, (), (), (), (), stacked, (count,))
            groups.append(
                min(_ways(whole, sizes, share_copies), key=functools.partial(_price, sizes=sizes, spread=spread))
            )
        found += [groups, _balanced(groups, cost, sizes, at_most_even=True), _balanced(groups, cost, sizes)]
    groups = min(found, key=lambda groups: _time(groups, cost, sizes))
    batches: dict[tuple, list[int]] = {}
    for position, group in enumerate(groups):
        shape = tuple(sorted(group.matrix)) if transposes else group.matrix
        batches.setdefault((shape, group.dtype, group.dealt, group.stacked), []).append(position)
    stacks = [tuple(x.shape[axis] for axis in layout.batch_axes) for x, layout in zip(arrays, layouts, strict=True)]
    return Plan(tuple(groups), tuple(map(tuple, batches.values())), sizes, tuple(stacks))


def newton_schulz_flops(fan_in: int, fan_out: int, steps: int = 5) -> float:
    """Of the products of Newton-Schulz for one matrix."""
    m, n = sorted((fan_in, fan_out))
    return steps * (4 * m * m * n + 2 * m**3)


def _ways(whole: Group, sizes: Mapping[str, int], share_copies: bool) -> Iterator[Group]:
    """All ways to deal a group, each device as many matrices as the others."""
    used = [name for name in sizes if any(name in names for _, names in whole.dims)]
    free = [name for name in sizes if name not in used and name not in whole.stacked and share_copies]
    for (move, gather), (split, _) in itertools.product(_partings(used), _partings(free)):
        dealt = move + split
        devices = math.prod(sizes[name] for name in dealt)
        held = (-(-whole.count // devices),) * devices
        yield dataclasses.replace(whole, move=move, gather=gather, split=split, dealt=dealt, held=held)


def _numbered(groups: Sequence[Group], sizes: Mapping[str, int]) -> list[Group]:
    """One order of devices for groups that are dealt to the same ones: neighbours hold copies.

    A group that is smaller than the number of devices then fills few places of each copy, and only these are gathered.
    """
    splits = [name for group in groups for name in group.split]
    order = sorted(sizes, key=lambda name: (splits.count(name), list(sizes).index(name)))
    return [dataclasses.replace(g, dealt=tuple(name for name in order if name in g.dealt)) for g in groups]


def _partings(names: Sequence[str]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """All ways to part names in two."""
    for choice in itertools.product((True, False), repeat=len(names)):
        yield tuple(itertools.compress(names, choice)), tuple(n for n, c in zip(names, choice, strict=True) if not c)


def _price(group: Group, sizes: Mapping[str, int], spread: bool) -> tuple[float, ...]:
    """Least on the busiest device; or, spread, most devices; then least to receive, then fewest collectives."""
    return -len(group.held) if spread else group.capacity, _received(group, sizes), group.collectives


def _received(group: Group, sizes: Mapping[str, int]) -> float:
    """Entries that a device receives: of `move` both ways, of `gather` before, of `split` after."""
    move, gather, split = (math.prod(sizes[name] for name in w) for w in (group.move, group.gather, group.split))
    whole = math.prod(length for length, _ in group.dims)
    there_and_back = 2 * whole * group.capacity * (move - 1) / (move * gather)
    copied = whole * group.used(sizes).sum() * (split - 1) / (move * gather) if split > 1 else 0
    return there_and_back + whole * group.capacity * (gather - 1) / gather + copied


def _price_of(group: Group, cost: Cost) -> float:
    """FLOPs of what travels as one matrix."""
    return group.blocks * cost(*group.matrix)


def _load(groups: Sequence[Group], positions: Sequence[int], cost: Cost) -> float:
    """FLOPs of the device that computes most of groups that are dealt to the same ones."""
    return float(np.max(sum(np.asarray(groups[p].held) * _price_of(groups[p], cost) for p in positions)))


def by_devices(groups: Sequence[Group]) -> Iterator[list[int]]:
    """Positions of groups that are dealt to the same devices."""
    for dealt in dict.fromkeys(group.dealt for group in groups):
        yield [position for position, group in enumerate(groups) if group.dealt == dealt]


def _time(groups: Sequence[Group], cost: Cost, sizes: Mapping[str, int]) -> float:
    """In bytes received."""
    time = 0.0
    for positions in by_devices(groups):
        received = sum(_received(groups[p], sizes) * groups[p].dtype.itemsize for p in positions)
        kinds = len(set(zip(*(groups[p].held for p in positions), strict=True)))
        if kinds > MANY_BRANCHES:
            return math.inf
        time += (_load(groups, positions, cost) / FLOPS_PER_BYTE + received) * (WORTH_BRANCHES if kinds > 1 else 1.0)
    return time


def _balanced(groups: Sequence[Group], cost: Cost, sizes: Mapping[str, int], at_most_even: bool = False) -> list[Group]:
    """Longest processing time first: each matrix to the device with the least to do so far.

    `at_most_even`: no device takes more of a group than an even share, so that buffers stay as short as they can be.
    """
    balanced = list(groups)
    for positions in by_devices(groups):
        devices = len(groups[positions[0]].held)
        load = [0.0] * devices
        for position in sorted(positions, key=lambda p: -_price_of(groups[p], cost)):
            group, price = groups[position], _price_of(groups[position], cost)
            even = max(0, group.count // devices - (not at_most_even))
            over, held = group.count - even * devices, [even] * devices
            load = [so_far + even * price for so_far in load]
            heap = [(so_far, device) for device, so_far in enumerate(load)]
            heapq.heapify(heap)
            for _ in range(over):
                so_far, device = heapq.heappop(heap)
                held[device] += 1
                load[device] += price
                if not at_most_even:
                    heapq.heappush(heap, (load[device], device))
            balanced[position] = dataclasses.replace(group, held=tuple(held))
    return balanced
