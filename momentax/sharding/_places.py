"""Where arrays lie: read from their types on explicit meshes, and from what the user stated on others."""

import contextlib
import contextvars
import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from momentax.sharding._specs import axes_of


@dataclasses.dataclass(frozen=True)
class Stated:
    """What the user said about the parameters.

    Attributes:
      mesh: on which they lie; None: the one that arrays show under jit.
      specs: from the path of a leaf to its partition; None: types show it.
      wire_dtype: dtype in which matrices travel; None: that of the technique.
      layout: "fully_sharded", or None.
      inside: whether whole arrays are traced for shards inside `jax.shard_map` (`on_shards`).
      share_copies: whether devices that hold copies of matrices may share the work and gather the results.
    """

    mesh: Any = None
    specs: Mapping[str, PartitionSpec] | None = None
    wire_dtype: Any = None
    layout: str | None = None
    inside: bool = False
    share_copies: bool = True


NOTHING = Stated()
_STATED: contextvars.ContextVar[Stated] = contextvars.ContextVar("momentax_stated", default=NOTHING)


@contextlib.contextmanager
def stating(**what: Any) -> Iterator[None]:
    """Within this context leaves lie as stated: fields of `Stated`; what is None leaves what was stated around it."""
    token = _STATED.set(dataclasses.replace(_STATED.get(), **{k: v for k, v in what.items() if v is not None}))
    try:
        yield
    finally:
        _STATED.reset(token)


def stated() -> Stated:
    """What was stated around this call."""
    return _STATED.get()


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an array lies.

    Attributes:
      mesh: None: on one device, or nobody can tell.
      spec: its partition over the axes of `mesh`.
      hidden: a mesh of several devices on which it lies, nobody can tell how.
      inside: whether its shards are those of a `jax.shard_map` around the code.
    """

    mesh: Any = None
    spec: PartitionSpec = PartitionSpec()
    hidden: Any = None
    inside: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """Devices of each mesh axis over which collectives may go."""
        if self.mesh is None:
            return {}
        kinds = dict(zip(self.mesh.axis_names, self.mesh.axis_types, strict=True))
        if self.inside:
            return {name: self.mesh.shape[name] for name, kind in kinds.items() if kind == AxisType.Manual}
        explicit = [name for name, kind in kinds.items() if kind == AxisType.Explicit]
        free = explicit or [name for name, kind in kinds.items() if kind == AxisType.Auto]
        return {name: self.mesh.shape[name] for name in free}

    def shards(self, rank: int) -> tuple[tuple[str, ...], ...]:
        """For each axis of the array the mesh axes over which it is sharded."""
        entries = (*self.spec, *[None] * (rank - len(self.spec)))
        return tuple(axes_of(entry) for entry in entries)


def place_of(path: str, x: Any) -> Place:
    """Where a leaf lies, by what was stated of its path, or by its type; shapes have no type."""
    stated = _STATED.get()
    seen: Any = jax.typeof(x).sharding.mesh if isinstance(x, jax.Array) else None
    spec = None if stated.specs is None else stated.specs.get(path)
    if spec is not None:
        mesh = seen if stated.mesh is None else stated.mesh
        return Place(mesh, fitting(spec, x.shape, mesh.shape), inside=stated.inside)
    if seen is None:
        return Place()
    if AxisType.Explicit in seen.axis_types:
        return Place(seen, jax.typeof(x).sharding.spec)
    return Place(hidden=seen if isinstance(x, jax.core.Tracer) and auto_axes(seen) else None)


def auto_axes(mesh: Any) -> tuple[str, ...]:
    """The mesh axes of several devices on which the compiler places arrays."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Auto and mesh.shape[name] > 1)


def fitting(spec: PartitionSpec, shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """The partition of what stands for a leaf in a technique: a shorter one is whole along axes that it cannot cut."""
    cuts = [math.prod(sizes[name] for name in axes_of(entry)) for entry in spec]
    entries = [entry if n % cut == 0 else None for entry, n, cut in zip(spec, shape, cuts, strict=False)]
    return PartitionSpec(*entries)


_told: set[str] = set()


def tell_hidden(function: str) -> None:
    """Says once that matrices are computed where the compiler puts them."""
    _tell(
        f"{function}: parameters lie on a mesh whose axes are of type Auto, and under jit nobody can tell how: the "
        "compiler decides what travels, which may be much. Give mesh= and param_specs= to the optimizer, or wrap it in "
        "momentax.on_mesh, which also takes layout='fully_sharded'; on a mesh of explicit axes nothing need be said."
    )


def tell_shards(function: str) -> None:
    """Says once that what may be shards is taken for whole leaves."""
    _tell(
        f"{function}: inside jax.shard_map leaves differ between devices, and nothing says that they are shards: what "
        "each device holds is taken for whole leaves of its own. If they are shards, wrap the optimizer in "
        "momentax.on_mesh(..., param_specs=...); if gradients were not reduced, call jax.lax.pmean first."
    )


def _tell(message: str) -> None:
    if message not in _told:
        _told.add(message)
        warnings.warn(message, stacklevel=3)
