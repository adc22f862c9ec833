"""Where arrays lie: read from their types on explicit meshes, and from what the user stated on others."""

import contextlib
import contextvars
import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from momentax.leaves import leaf_path
from momentax.sharding._specs import axes_of, resolve_specs


@dataclasses.dataclass(frozen=True)
class Stated:
    """What the user said about the parameters.

    Attributes:
      mesh: on which they lie; None: the one that arrays show under jit.
      specs: from the path of a leaf to its partition; None: types show it.
      wire_dtype: dtype in which matrices travel; None: that of the technique.
      layout: "fully_sharded", or None.
    """

    mesh: Any = None
    specs: Mapping[str, PartitionSpec] | None = None
    wire_dtype: Any = None
    layout: str | None = None


NOTHING = Stated()
_STATED: contextvars.ContextVar[Stated] = contextvars.ContextVar("momentax_stated", default=NOTHING)


@contextlib.contextmanager
def stating(
    function: str,
    tree: Any,
    mesh: Any = None,
    param_specs: Any = None,
    wire_dtype: Any = None,
    layout: str | None = None,
) -> Iterator[None]:
    """Within this context the leaves of `tree` lie as stated; None leaves what was stated around it.

    Raises:
      ValueError, TypeError: as `resolve_specs`.
    """
    around = _STATED.get()
    specs = around.specs
    if mesh is not None or param_specs is not None:
        mesh, found = resolve_specs(function, tree, mesh, param_specs)
        paths = [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        specs = dict(zip(paths, found, strict=True))
    token = _STATED.set(
        Stated(
            around.mesh if mesh is None else mesh,
            specs,
            around.wire_dtype if wire_dtype is None else wire_dtype,
            around.layout if layout is None else layout,
        )
    )
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
    """

    mesh: Any = None
    spec: PartitionSpec = PartitionSpec()
    hidden: Any = None

    @property
    def sizes(self) -> dict[str, int]:
        """Devices of each mesh axis over which collectives may go: explicit ones, or those that nobody has taken."""
        if self.mesh is None:
            return {}
        kinds = dict(zip(self.mesh.axis_names, self.mesh.axis_types, strict=True))
        explicit = [name for name, kind in kinds.items() if kind == AxisType.Explicit]
        free = explicit or [name for name, kind in kinds.items() if kind == AxisType.Auto]
        return {name: self.mesh.shape[name] for name in free}

    def shards(self, rank: int) -> tuple[tuple[str, ...], ...]:
        """For each axis of the array the mesh axes over which it is sharded."""
        entries = (*self.spec, *[None] * (rank - len(self.spec)))
        return tuple(axes_of(entry) for entry in entries)


def place_of(path: str, x: jax.Array) -> Place:
    """Where a leaf lies, by what was stated of its path, or by its type."""
    stated = _STATED.get()
    seen = jax.typeof(x).sharding.mesh
    spec = None if stated.specs is None else stated.specs.get(path)
    if spec is not None:
        mesh = seen if stated.mesh is None else stated.mesh
        return Place(mesh, _fitting(spec, x, mesh))
    if AxisType.Explicit in seen.axis_types:
        return Place(seen, jax.typeof(x).sharding.spec)
    return Place(hidden=seen if isinstance(x, jax.core.Tracer) and auto_axes(seen) else None)


def auto_axes(mesh: Any) -> tuple[str, ...]:
    """The mesh axes of several devices on which the compiler places arrays."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Auto and mesh.shape[name] > 1)


def _fitting(spec: PartitionSpec, x: jax.Array, mesh: Any) -> PartitionSpec:
    """The partition of what stands for a leaf in a technique: a shorter one is whole along axes that it cannot cut."""
    entries = []
    for axis, entry in enumerate(spec[: x.ndim]):
        cut = math.prod(mesh.shape[name] for name in axes_of(entry))
        entries.append(entry if x.shape[axis] % cut == 0 else None)
    return PartitionSpec(*entries)


_told: set[str] = set()


def tell_hidden(function: str) -> None:
    """Says once that matrices are computed where the compiler puts them."""
    if function in _told:
        return
    _told.add(function)
    warnings.warn(
        f"{function}: parameters lie on a mesh whose axes are of type Auto, and under jit nobody can tell how: the "
        "compiler decides what travels, which may be much. Give mesh= and param_specs= to the optimizer, or wrap it in "
        "momentax.on_mesh, which also takes layout='fully_sharded'; on a mesh of explicit axes nothing need be said.",
        stacklevel=2,
    )
