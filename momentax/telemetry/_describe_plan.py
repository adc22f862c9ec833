"""A table of what travels and who computes what, before anything is compiled."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from momentax.matrices import matrices
from momentax.paths import named_leaves
from momentax.routing import Routing, resolve
from momentax.sharding import Group, Layout, Place, newton_schulz_flops, plan_matrices, resolve_specs, stating

NAME = "describe_plan"


@dataclasses.dataclass(frozen=True)
class GroupCosts:
    """Matrices of one shape, dtype and placement, and what they cost each device.

    Attributes:
      leaves: paths of the leaves.
      matrices: how many there are on the whole mesh.
      shape: inputs and outputs of one matrix.
      dtype: of the leaves.
      lies: how one matrix is sharded, such as "in: fsdp".
      dealt: what moves: "all-to-all over fsdp" and so on.
      each: matrices that the busiest device computes.
      padding: share of empty places in the buffers that travel, 0 for none.
      collectives: how many.
      received: bytes that a device receives.
      flops: of a device that computes `each` matrices.
    """

    leaves: tuple[str, ...]
    matrices: int
    shape: tuple[int, int]
    dtype: str
    lies: str
    dealt: str
    each: int
    padding: float
    collectives: int
    received: int
    flops: float


@dataclasses.dataclass(frozen=True)
class PlanDescription:
    """The table that `describe_plan` returns; `print` it.

    Attributes:
      groups: what travels together.
      devices: of the mesh.
      collectives: of one step.
      received: bytes that a device receives in one step.
      flops: of the busiest device in one step.
      ideal_flops: of all matrices, divided by the devices.
    """

    groups: tuple[GroupCosts, ...]
    devices: int
    collectives: int
    received: int
    flops: float
    ideal_flops: float

    def __str__(self) -> str:
        table = [("matrices", "shape", "dtype", "sharded", "travels", "each", "padding", "received", "FLOPs", "leaves")]
        for group in self.groups:
            names = group.leaves[0] + (f" and {len(group.leaves) - 1} more" if len(group.leaves) > 1 else "")
            shape = f"{group.shape[0]}x{group.shape[1]}"
            numbers = (f"{group.padding:.0%}", _short(group.received, "B"), _short(group.flops))
            ends = (group.dealt, str(group.each), *numbers, names)
            table.append((str(group.matrices), shape, group.dtype, group.lies, *ends))
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        ratio = self.flops / self.ideal_flops if self.ideal_flops else 1.0
        lines.append(
            f"{self.devices} devices, each: {self.collectives} collectives, {_short(self.received, 'B')} received, "
            f"{_short(self.flops)} FLOPs on the busiest ({ratio:.2f} x an even share)"
        )
        return "\n".join(lines)

    __repr__ = __str__


def describe_plan(
    params: Any,
    mesh: Any = None,
    param_specs: Any = None,
    routing: Routing | None = None,
    head: str | None = None,
    *,
    steps: int = 5,
    compute_dtype: Any = None,
    wire_dtype: Any = None,
) -> PlanDescription:
    """Says how an orthogonalising optimizer deals its matrices to the devices of a mesh, and what that costs.

    Args:
      params: tree of arrays or of shapes.
      mesh: as given to the optimizer; a mesh of devices that are not there will do (`jax.sharding.AbstractMesh`).
      param_specs: as given to the optimizer. None: the NamedShardings of the parameters.
      routing: as given to the optimizer.
      head: as given to the optimizer.
      steps: of Newton-Schulz, for the FLOPs; 5 as in Muon.
      compute_dtype: as given to the optimizer; None is that of the leaf.
      wire_dtype: as given to `momentax.on_mesh`; None is `compute_dtype`.

    Returns:
      A table. Bytes are those of bandwidth-optimal collectives; FLOPs those of the products of Newton-Schulz as it
      stands, which the Gram form would lower. Where groups share idle devices, FLOPs are of all groups that the busiest
      device computes, and those of a row of a device that computes `each` of it.

    Raises:
      ValueError: leaves that cannot be told, or partitions that fit neither them nor the mesh.

    Example:
      >>> import jax, momentax
      >>> params = {f"up_{n}": jax.ShapeDtypeStruct((1024, 4096), "float32") for n in range(16)}
      >>> mesh = jax.sharding.AbstractMesh((16,), ("fsdp",))
      >>> specs, routing = {name: jax.P("fsdp") for name in params}, momentax.routing.matrix((0,), (1,))
      >>> plan = describe_plan(params, mesh, specs, routing)
      >>> print(plan)  # doctest: +NORMALIZE_WHITESPACE
      matrices  shape      dtype    sharded   travels               each  padding  received  FLOPs   leaves
      16        1024x4096  float32  in: fsdp  all-to-all over fsdp  1     0%       31.5 MB   96.6 G  up_0 and 15 more
      16 devices, each: 2 collectives, 31.5 MB received, 96.6 G FLOPs on the busiest (1.00 x an even share)
    """
    mesh, specs = resolve_specs(NAME, params, mesh, param_specs)
    if mesh is None:
        raise ValueError(f"{NAME}: nobody knows the mesh: give `mesh`, or parameters that have a NamedSharding.")
    flat = named_leaves(params)
    rules = resolve(NAME, params, routing, head=head, certain=True, strict=True)
    ruled = {path: rule for (path, _), rule in zip(flat, rules, strict=True) if rule.kind == "matrix"}
    shapes = {path: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for path, x in flat if path in ruled}
    with stating(mesh=mesh, specs={path: spec for (path, _), spec in zip(flat, specs, strict=True)}):
        read = matrices(NAME, shapes, lambda path, leaf: ruled[path])
    whole = jax.tree.leaves(shapes)
    together, read_rules, places = read.read_whole(whole)
    apart = jax.tree.leaves(jax.eval_shape(read.apart, shapes))
    travelling = [x if t else y for x, y, t in zip(whole, apart, together, strict=True)]
    layouts = [
        Layout(rule.batch_axes, rule.in_axes, rule.out_axes, place.shards(x.ndim), rule.blocks)
        for x, rule, place in zip(travelling, read_rules, places, strict=True)
    ]
    sizes = Place(mesh).sizes
    plan = plan_matrices(travelling, layouts, sizes, transposes=True)
    cost = functools.partial(newton_schulz_flops, steps=steps)
    wire = compute_dtype if wire_dtype is None else wire_dtype
    groups = []
    for group in plan.groups:
        bytes_each = jnp.dtype(wire if wire is not None and group.collectives else group.dtype).itemsize
        stacked = plan.number(group.stacked)
        groups.append(
            GroupCosts(
                leaves=tuple(sorted(shapes)[member] for member in group.members),
                matrices=group.count * group.blocks * stacked,
                shape=group.matrix,
                dtype=str(group.dtype),
                lies=_lies(group),
                dealt=_dealt(group),
                each=group.capacity * group.blocks,
                padding=1 - group.count / (group.capacity * len(group.held)) if group.count else 0.0,
                collectives=group.collectives,
                received=plan.received(group) * bytes_each,
                flops=group.capacity * group.blocks * cost(*group.matrix),
            )
        )
    total = sum(g.matrices * cost(*group.matrix) for g, group in zip(groups, plan.groups, strict=True))
    devices = math.prod(sizes.values())
    return PlanDescription(
        groups=tuple(groups),
        devices=devices,
        collectives=sum(group.collectives for group in groups),
        received=sum(group.received for group in groups),
        flops=plan.busiest(cost),
        ideal_flops=total / devices,
    )


def _lies(group: Group) -> str:
    entries = [f"stack: {', '.join(group.stacked)}"] if group.stacked else []
    for side, dims in (("in", group.ins), ("out", group.outs)):
        names = [name for dim in dims for name in group.dims[dim][1]]
        entries += [f"{side}: {', '.join(names)}"] if names else []
    return "; ".join(entries) or "whole"


def _dealt(group: Group) -> str:
    ways = (("all-to-all", group.move), ("all-gather", group.gather), ("share copies, all-gather", group.split))
    return "; ".join(f"{how} over {', '.join(names)}" for how, names in ways if names) or "nothing"


def _short(number: float, unit: str = "") -> str:
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.1f} {prefix}{unit}"
    return f"{number:.0f} {unit}".rstrip()
