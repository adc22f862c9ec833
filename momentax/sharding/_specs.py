"""Where parameters lie, from what a user says of it: one partition for each leaf, checked before JAX sees it."""

import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from momentax.paths import closest, is_part, named_leaves
from momentax.typing import Params


def resolve_specs(
    function: str, params: Params, mesh: Any = None, param_specs: Any = None, taken: Collection[str] = ()
) -> tuple[Any, list[PartitionSpec]]:
    """The mesh, and for each leaf of `params` its partition, in flattening order.

    Args:
      function: name of the public function, for errors.
      params: tree of arrays or jax.ShapeDtypeStruct; or part of one, with optax.MaskedNode for the rest.
      mesh: jax.sharding.Mesh or AbstractMesh. None: that of the NamedShardings, else the one of `jax.set_mesh`.
      param_specs: tree of PartitionSpec or NamedSharding like the parameters or a prefix of them, or a function
        (path, leaf) of one, the path as `momentax.paths.leaf_path` spells it. A spec of None is PartitionSpec(). None:
        the NamedShardings of the parameters themselves.
      taken: mesh axes of a `jax.shard_map` around the call, over which the leaves are divided already.

    Returns:
      The mesh and the partitions as they were given, so not longer than the rank and perhaps shorter; (mesh, []) for a
      tree without leaves. The mesh is None where nobody knows one and no partition names an axis.

    Raises:
      ValueError: no mesh, several, one without an axis that is named, or partitions that do not fit the leaves.
      TypeError: something else than a partition is found where one belongs.

    Example:
      >>> params = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
      >>> mesh = jax.make_mesh((1,), ("fsdp",))
      >>> resolve_specs("example", params, mesh, lambda path, leaf: jax.P("fsdp") if leaf.ndim == 2 else None)[1]
      [P(), P('fsdp',)]
    """
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh | jax.sharding.AbstractMesh):
        raise TypeError(
            f"{function}: `mesh` must be a jax.sharding.Mesh; got {type(mesh).__name__}. optax.inject_hyperparams "
            "takes meshes for schedules: name them there in static_args=('mesh', 'param_specs')."
        )
    named = named_leaves(params)
    if not named:
        return mesh, []
    if param_specs is None:
        given = [_own(function, path, leaf) for path, leaf in named]
    elif _is_tree(param_specs):
        given = _match(function, params, [path for path, _ in named], param_specs)
    else:
        given = [param_specs(path, leaf) for path, leaf in named]
    for (path, _), place in zip(named, given, strict=True):
        if not _is_place(place):
            raise TypeError(
                f"{function}: `param_specs` must give a jax.sharding.PartitionSpec or NamedSharding for leaf '{path}', "
                f"for example jax.P('data', None); got {place!r}."
            )
    mesh = _one_mesh(function, mesh, [(path, place) for (path, _), place in zip(named, given, strict=True)])
    specs = [place.spec if isinstance(place, NamedSharding) else place or PartitionSpec() for place in given]
    for (path, leaf), spec in zip(named, specs, strict=True):
        _check_fit(function, path, jnp.shape(leaf), mesh, spec, taken)
    return mesh, specs


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes that an entry of a PartitionSpec names.

    >>> axes_of(None), axes_of("data"), axes_of(("data", "model"))
    ((), ('data',), ('data', 'model'))
    """
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _is_place(place: Any) -> bool:
    return place is None or isinstance(place, (PartitionSpec, NamedSharding))


def _is_tree(param_specs: Any) -> bool:
    if not callable(param_specs):
        return True
    found = jax.tree.leaves(param_specs, is_leaf=_is_place)  # a tree of partitions may be callable: Equinox modules are
    return bool(found) and all(map(_is_place, found))


def _own(function: str, path: str, leaf: Any) -> NamedSharding:
    """Where an array says that it lies."""
    traced = isinstance(leaf, jax.core.Tracer)
    place: Any = jax.typeof(leaf).sharding if traced else getattr(leaf, "sharding", None)
    explicit = not traced or all(kind == jax.sharding.AxisType.Explicit for kind in place.mesh.axis_types)
    if isinstance(place, NamedSharding) and explicit and not place.mesh.empty:
        return place
    why = "is traced on a mesh without explicit axes, where arrays do not say" if traced else "does not say"
    raise ValueError(
        f"{function}: leaf '{path}' {why} where it lies. Give `mesh` and `param_specs`, a tree of PartitionSpec like "
        "the parameters or a function (path, leaf) -> PartitionSpec; or parameters that have a NamedSharding."
    )


def _match(function: str, params: Params, paths: list[str], param_specs: Any) -> list[Any]:
    """The partition of each path: its own, or that of the branch it is on."""
    given = dict(named_leaves(param_specs, _is_place))
    found = []
    for path in paths:
        above = closest(path, given)
        if above is None and any(part.startswith(f"{path}/") for part in given):
            raise TypeError(
                f"{function}: `param_specs` has a tuple or another tree for leaf '{path}': write its partition as "
                "jax.P(...)."
            )
        if above is None:
            raise ValueError(
                f"{function}: `param_specs` has nothing for leaf '{path}' of the parameters; it has {_list(given)}. "
                "Give a tree of PartitionSpec like the parameters or a prefix of it, or a function (path, leaf)."
            )
        found.append(above)
    unused = [path for path, place in given.items() if path not in found and place is not None]
    if unused and not is_part(params):
        raise ValueError(
            f"{function}: `param_specs` has leaf '{unused[0]}', which the parameters lack; they have {_list(paths)}. "
            "Give a tree of PartitionSpec like the parameters or a prefix of it, or a function (path, leaf)."
        )
    return [given[above] for above in found]


def _list(paths: Any) -> str:
    shown = [f"'{path}'" for path in paths]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _one_mesh(function: str, mesh: Any, places: list[tuple[str, Any]]) -> Any:
    """The mesh that all partitions are for."""
    origin = "`mesh`"
    for path, place in places:
        if not isinstance(place, NamedSharding):
            continue
        if mesh is None:
            mesh, origin = place.mesh, f"leaf '{path}'"
        elif not _same(mesh, place.mesh):
            raise ValueError(
                f"{function}: leaf '{path}' lies on {_shape(place.mesh)}, and {origin} is {_shape(mesh)}: all "
                "parameters lie on one mesh. Move the leaf with jax.device_put, or give a PartitionSpec for `mesh`."
            )
    if mesh is None:
        try:
            mesh = jax.sharding.get_mesh()
        except ValueError:  # under jit its axes are known and its devices are not
            mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty and all(place is None or not any(map(axes_of, place)) for _, place in places):
        return None
    if mesh.empty:
        raise ValueError(
            f"{function}: `param_specs` needs a mesh to name the axes of: pass `mesh=`, or a tree of NamedSharding, "
            "which brings its own, or call it under jax.set_mesh(mesh)."
        )
    return mesh


def _same(a: Any, b: Any) -> bool:
    """Whether two meshes have the same axes and, where both know theirs, the same devices."""
    if tuple(a.shape.items()) != tuple(b.shape.items()):
        return False
    concrete = all(isinstance(mesh, jax.sharding.Mesh) for mesh in (a, b))
    return not concrete or a.devices.tolist() == b.devices.tolist()


def _shape(mesh: Any) -> str:
    return "a mesh of " + " x ".join(f"{name}={size}" for name, size in mesh.shape.items())


def _check_fit(
    function: str, path: str, shape: tuple[int, ...], mesh: Any, spec: PartitionSpec, taken: Collection[str]
) -> None:
    where = f"{function}: the partition {spec} of leaf '{path}' of shape {shape}"
    if len(spec) > len(shape):
        raise ValueError(
            f"{where} has {len(spec)} entries for {len(shape)} axes: leave entries out from the right, or give this "
            "leaf a partition of its own."
        )
    used: set[str] = set()
    for axis, entry in enumerate(spec):
        names = axes_of(entry)
        for name in names:
            if name not in mesh.shape:
                listed = ", ".join(f"'{known}'" for known in mesh.axis_names)
                raise ValueError(f"{where} names {name!r}, and the mesh has the axes {listed}: name one of these.")
            if name in used:
                raise ValueError(f"{where} uses mesh axis {name!r} twice: one axis divides an array once.")
            used.add(name)
        devices = math.prod(mesh.shape[name] for name in names if name not in taken)
        if shape[axis] % devices:
            raise ValueError(
                f"{where} divides axis {axis}, of length {shape[axis]}, over {devices} devices: JAX needs a multiple. "
                "Pad the axis, or leave it whole: None in the partition."
            )
