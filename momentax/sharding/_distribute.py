"""Applies a function of matrices to many of them at once: whole ones, those of one shape in one batch."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from momentax.sharding._exchange import concatenated, dealt_numbers, gathered
from momentax.sharding._places import Place, stated, tell_hidden, tell_shards
from momentax.sharding._plan import Cost, Layout, Plan, by_devices, plan_matrices
from momentax.varying import vary_as, varying_axes

# An operation of its own where a program is traced for shards (`momentax.sharding.on_shards`). The class is that of
# jax.extend.core, whose import brings Pallas along.
distribute_p: Any = type(jax.lax.add_p)("distribute")
distribute_p.multiple_results = True
distribute_p.def_abstract_eval(lambda *operands, job, lies, renewed: [operands[index] for index in renewed])


def distribute(
    name: str,
    function: Callable[..., Any],
    arrays: Sequence[jax.Array],
    axes: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int], int]],
    places: Sequence[Place],
    *,
    more: Sequence[Sequence[jax.Array]] = (),
    beside: Sequence[Sequence[jax.Array]] = (),
    shared: Sequence[Any] = (),
    transposes: bool = False,
    cost: Cost | None = None,
    wire_dtype: Any = None,
) -> Any:
    """`function` of every matrix, each computed whole on one device (or as few as there must be), in few batches.

    Over a mesh, matrices of one shape, dtype and placement are dealt to the devices by one all-to-all, computed there
    without any communication, and sent back by another one: see `Plan`.

    Args:
      name: of the public function, for the notice.
      function: from matrices (k, in, out) to matrices of the same shape and dtype, each by itself; it knows no mesh.
        With `beside` it takes them behind the matrices and returns (matrices, *beside).
      arrays: any number of axes each.
      axes: for each array its batch, input and output axes, merged in this order, major first, and the number of
        matrices that lie side by side along the last output axis.
      places: where each lies.
      more: further lists like `arrays`, lying alike, whose matrices the function takes behind those of `arrays`.
      beside: lists of arrays (matrices of the array, ...) that are whole on every device: numbers that belong to the
        matrices, which the function reads and renews.
      shared: scalars that the function takes last.
      transposes: whether function(x') = function(x)', so that matrices (m, n) and (n, m) may share a batch.
      cost: FLOPs of one matrix (in, out), for the plan. None: those of Newton-Schulz.
      wire_dtype: dtype in which matrices travel, where they do; None is their own.

    Returns:
      A list of arrays like `arrays`, lying as they do; with `beside`, (this list, *lists like those of `beside`).

    Example:
      >>> [y] = distribute("example", lambda x: 2 * x, [jnp.ones((1, 2))], [((), (0,), (1,), 1)], [Place()])
      >>> print(y)
      [[2. 2.]]
    """
    full = [index for index, x in enumerate(arrays) if x.size]
    if len(full) < len(arrays) or not arrays:  # what has no entries stays what it is
        lists = [list(each) for each in (arrays, *beside)]
        if full:
            new = distribute(
                name,
                function,
                [arrays[index] for index in full],
                [axes[index] for index in full],
                [places[index] for index in full],
                more=[[each[index] for index in full] for each in more],
                beside=[[each[index] for index in full] for each in beside],
                shared=shared,
                transposes=transposes,
                cost=cost,
                wire_dtype=wire_dtype,
            )
            for old, column in zip(lists, new if beside else [new], strict=True):
                for index, x in zip(full, column, strict=True):
                    old[index] = x
        return tuple(lists) if beside else lists[0]
    layouts = [
        Layout(tuple(batch), tuple(ins), tuple(outs), place.shards(x.ndim), blocks)
        for x, (batch, ins, outs, blocks), place in zip(arrays, axes, places, strict=True)
    ]
    place = next((place for place in places if place.mesh is not None), Place())
    hidden = next((place.hidden for place in places if place.hidden is not None), None)
    assumed = stated().layout == "fully_sharded"
    if hidden is not None and not assumed:
        tell_hidden(name)
    if place.mesh is None and any(map(varying_axes, arrays)):
        tell_shards(name)
    wire_dtype = wire_dtype if stated().wire_dtype is None else stated().wire_dtype
    plan = plan_matrices(
        arrays, layouts, place.sizes, transposes=transposes, cost=cost, share_copies=stated().share_copies
    )
    job = _Job(function, plan, layouts, wire_dtype, hidden if assumed else None, 1 + len(more), len(beside))
    numbers = list(itertools.chain(*beside))
    operands = [*arrays, *itertools.chain(*more), *numbers, *map(jnp.asarray, shared)]
    own, whole = tuple(at.spec for at in places), PartitionSpec()
    specs = own * (1 + len(more)) + (whole,) * (len(numbers) + len(shared))
    if place.mesh is None:
        results = job(*operands)
    elif place.inside:
        lies = tuple(Place(spec=spec).shards(jnp.ndim(x)) for x, spec in zip(operands, specs, strict=True))
        first = len(own) * (1 + len(more))
        renewed = (*range(len(own)), *range(first, first + len(numbers)))
        results = distribute_p.bind(*operands, job=job, lies=lies, renewed=renewed)
    else:
        # results that are gathered are the same on all devices, which types cannot always tell
        on_mesh = jax.shard_map(
            job,
            mesh=place.mesh,
            in_specs=specs,
            out_specs=own + (whole,) * len(numbers),
            axis_names=set(place.sizes),
            check_vma=False,
        )
        results = on_mesh(*operands)
    lists = [list(results[at : at + len(arrays)]) for at in range(0, len(results), len(arrays))]
    return tuple(lists) if beside else lists[0]


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """What each device does with its shards."""

    function: Callable[..., Any]
    plan: Plan
    layouts: Sequence[Layout]
    wire_dtype: Any
    hidden: Any
    operands: int  # lists of arrays
    beside: int  # lists of numbers

    def __call__(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        number = len(self.layouts)
        lists = [arrays[at : at + number] for at in range(0, number * (self.operands + self.beside), number)]
        shared = arrays[number * (self.operands + self.beside) :]
        plan, layouts, groups = self.plan, self.layouts, self.plan.groups
        inputs, back = [], []
        for group in groups:
            moved = [gathered(plan, group, layouts, xs, self.wire_dtype, self.hidden) for xs in lists[: self.operands]]
            known = [dealt_numbers(plan, group, layouts, xs) for xs in lists[self.operands :]]
            inputs.append([x for x, _ in moved + known])
            back.append([way for _, way in moved[:1] + known])
        results: list[list[Any]] = [[None] * number for _ in range(1 + self.beside)]
        for positions in by_devices(groups):
            new = self._computed(positions, {p: inputs[p] for p in positions}, shared)
            for p in positions:
                for column, way, result in zip(results, back[p], new[p], strict=True):
                    for member, x in zip(groups[p].members, way(result), strict=True):
                        column[member] = x
        return tuple(itertools.chain(*results))

    def _computed(self, positions: list[int], inputs: dict[int, list[jax.Array]], shared: Sequence[jax.Array]):
        """The function of what this device holds; devices of different holdings take different branches."""
        plan, keep = self.plan, [0, *range(self.operands, self.operands + self.beside)]
        kinds = list(zip(*(plan.groups[p].held for p in positions), strict=True))
        different = list(dict.fromkeys(kinds))
        batches = [batch for batch in plan.batches if batch[0] in positions]

        def branch(kind, inputs):
            number = {p: held * plan.groups[p].blocks for p, held in zip(positions, kind, strict=True)}
            kept = {p: [inputs[p][column] for column in keep] for p in positions}
            new = {p: [vary_as(jnp.zeros_like(x), x) for x in xs] for p, xs in kept.items()}
            for batch in batches:
                full = [p for p in batch if number[p]]
                turned = {p: plan.groups[p].matrix != plan.groups[batch[0]].matrix for p in batch}
                columns = [[x[: number[p]].mT if turned[p] else x[: number[p]] for x in inputs[p]] for p in full]
                if not full:
                    continue
                joined = self.function(*map(concatenated, zip(*columns, strict=True)), *shared)
                joined = joined if self.beside else (joined,)
                start = 0
                for p in full:
                    end = start + number[p]
                    parts = [y[start:end].mT if turned[p] else y[start:end] for y in joined]
                    new[p] = [_lengthened(y, len(x)) for y, x in zip(parts, new[p], strict=True)]
                    start = end
            return new

        if len(different) == 1:
            return branch(different[0], inputs)
        which = jnp.array([different.index(kind) for kind in kinds], jnp.int32)
        device = which[jax.lax.axis_index(plan.groups[positions[0]].dealt)]
        return jax.lax.switch(device, [functools.partial(branch, kind) for kind in different], inputs)


def _lengthened(x: jax.Array, length: int) -> jax.Array:
    """x with zeros behind it."""
    return x if len(x) == length else jnp.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1))
