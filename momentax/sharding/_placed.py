"""A transformation that knows where the parameters lie: outside `jax.shard_map`, and inside it."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from momentax.paths import named_leaves, paths_of
from momentax.sharding._on_shards import on_shards, whole_shape
from momentax.sharding._places import Place, fitting, stated, stating, tell_shards
from momentax.sharding._shard_rules import NOWHERE, Lies, devices_of
from momentax.sharding._specs import axes_of, resolve_specs
from momentax.sharding._state_shardings import state_shardings
from momentax.slots import mirrored
from momentax.typing import Transformation
from momentax.varying import varying_axes


def placed(
    function: str,
    inner: Transformation,
    mesh: Any = None,
    param_specs: Any = None,
    wire_dtype: Any = None,
    layout: str | None = None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`init` and `update` of `inner`, with the arguments of `momentax.on_mesh`; `function` is the name for errors."""
    wrapped = optax.with_extra_args_support(inner)
    wire_dtype = None if wire_dtype is None else jnp.dtype(wire_dtype)

    def situation(tree):
        """The mesh, the partitions, and whether the leaves are shards of a `jax.shard_map` around this call."""
        if stated().inside:  # arrays are whole: all is said
            return None, None, False
        if mesh is None and param_specs is None:
            if any(map(varying_axes, filter(_is_array, jax.tree.leaves(tree)))):
                tell_shards(function)
            return None, None, False
        around = jax.sharding.get_abstract_mesh()
        manual = {n for n, kind in zip(around.axis_names, around.axis_types, strict=True) if kind == AxisType.Manual}
        at, specs = resolve_specs(function, tree, around if manual else mesh, param_specs, manual)
        if at is None:
            return None, None, False
        names = {name for spec in specs for entry in spec for name in axes_of(entry)}
        if names - manual and names & manual:
            raise ValueError(
                f"{function}: the partitions name the mesh axes {sorted(names)}, of which jax.shard_map around the "
                f"update has taken {sorted(names & manual)} alone: let it take all of them, or none."
            )
        return at, specs, bool(manual) and names <= manual

    def stated_of(tree, at, specs, inside=None):
        by_path = None if specs is None else dict(zip(paths_of(tree), specs, strict=True))
        return stating(mesh=at, specs=by_path, wire_dtype=wire_dtype, layout=layout, inside=inside)

    def start(at, specs, inside):
        def started(params):
            with stated_of(params, at, specs, inside or None):
                return wrapped.init(params)

        return started

    def init(params):
        at, specs, inside = situation(params)
        started = start(at, specs, inside)
        if not inside:
            return _constrained(started(params), wrapped, params, at, specs)
        shards = _Shards(params, specs, Place(at, inside=True).sizes)
        return on_shards(started, shards.sizes, (params,), shards.lies, shards.state)

    def update(updates, state, params=None, **extra_args):
        at, specs, inside = situation(updates)
        # functions, flags and the like stay what they are
        extra, structure = jax.tree.flatten(extra_args)
        traced = list(map(_is_array, extra))
        arrays = list(itertools.compress(extra, traced))

        def updated(updates, state, params, arrays):
            given = iter(arrays)
            rejoined = [next(given) if array else x for x, array in zip(extra, traced, strict=True)]
            with stated_of(updates, at, specs, inside or None):
                return wrapped.update(updates, state, params, **jax.tree.unflatten(structure, rejoined))

        if not inside:
            return updated(updates, state, params, arrays)
        shards = _Shards(updates, specs, Place(at, inside=True).sizes)
        _check_reduced(function, "leaf '{}' of the gradients", updates, shards.lies)
        like = shards.whole(updates if params is None else params)
        whole_state = jax.eval_shape(start(at, specs, inside), like)
        state_lies = shards.state(whole_state)
        _check_shards(function, "parameters", params, shards.whole(updates), shards.lies, shards.sizes)
        _check_shards(function, "state", state, whole_state, state_lies, shards.sizes)
        lies = shards.lies + state_lies + (shards.lies if params is not None else [])
        for name, tree in sorted(extra_args.items()):  # as flattening a dict does
            extra_lies = shards.extra(tree)
            _check_reduced(function, f"the argument `{name}`", tree, extra_lies)
            lies = lies + extra_lies
        arguments = (updates, state, params, arrays)
        return on_shards(updated, shards.sizes, arguments, lies, lambda result: shards.lies + shards.state(result[1]))

    return init, update


def _constrained(state: Any, tx: Transformation, params: Any, mesh: Any, specs: list[PartitionSpec] | None) -> Any:
    """The state where it belongs: under jit the compiler would make it whole on every device."""
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params))
    if not traced or specs is None or set(mesh.axis_types) != {AxisType.Auto}:
        return state
    tree = jax.tree.unflatten(jax.tree.structure(params), [NamedSharding(mesh, spec) for spec in specs])
    return jax.tree.map(jax.lax.with_sharding_constraint, state, state_shardings(tx, params, mesh, tree))


class _Shards:
    """Where the leaves of parameters, given as shards, lie, and with them the leaves of other trees."""

    def __init__(self, shards: Any, specs: list[PartitionSpec], sizes: Mapping[str, int]):
        self.shards, self.specs, self.sizes = shards, specs, sizes
        ranks = map(jnp.ndim, jax.tree.leaves(shards))
        self.lies = [Place(spec=spec).shards(rank) for spec, rank in zip(specs, ranks, strict=True)]

    def whole(self, tree: Any) -> Any:
        """The shapes of whole arrays, of a tree of shards like the parameters."""
        flat, treedef = jax.tree.flatten(tree)
        shapes = [whole_shape(jnp.shape(x), lies, self.sizes) for x, lies in zip(flat, self.lies, strict=True)]
        structs = [jax.ShapeDtypeStruct(shape, jnp.result_type(x)) for shape, x in zip(shapes, flat, strict=True)]
        return jax.tree.unflatten(treedef, structs)

    def state(self, state: Any) -> list[Lies]:
        """Where the leaves of a state of whole shapes lie: what mirrors a parameter as that parameter."""
        found: list[Lies] = []
        for leaf, at in zip(jax.tree.leaves(state), mirrored(state, self.whole(self.shards)), strict=True):
            spec = PartitionSpec() if at is None else fitting(self.specs[at], leaf.shape, self.sizes)
            found.append(Place(spec=spec).shards(jnp.ndim(leaf)))
        return found

    def extra(self, tree: Any) -> list[Lies]:
        """Where the arrays of an extra argument lie: as the parameters if it is like them, else whole everywhere."""
        arrays = list(filter(_is_array, jax.tree.leaves(tree)))
        structures: list[Any] = [jax.tree.structure(t) for t in (tree, self.shards)]
        shapes = [list(map(jnp.shape, flat)) for flat in (arrays, jax.tree.leaves(self.shards))]
        alike = structures[0] == structures[1] and shapes[0] == shapes[1]
        return self.lies if alike else [NOWHERE * len(shape) for shape in shapes[0]]


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray)


def _check_reduced(function: str, what: str, tree: Any, lies: list[Lies]) -> None:
    """Raises `ValueError` where types show arrays to differ between devices that should hold the same."""
    named = [(path, leaf) for path, leaf in named_leaves(tree) if _is_array(leaf)]
    for (path, leaf), entries in zip(named, lies, strict=True):
        sizes = jax.typeof(leaf).sharding.mesh.shape
        known = {name for names in entries for name in names}
        axes = tuple(sorted(name for name in varying_axes(leaf) - known if sizes[name] > 1))
        if axes:
            raise ValueError(
                f"{function}: {what.format(path)} differs along the mesh axes {axes}, over which it is not sharded: it "
                f"was not reduced there. Call jax.lax.pmean(..., {axes}) before the update, or name the axes in "
                "param_specs."
            )


def _check_shards(function: str, what: str, tree: Any, whole: Any, lies: list[Lies], sizes: Mapping[str, int]) -> None:
    """Raises `ValueError` where leaves have not the shapes that shards of whole leaves would have."""
    structures: list[Any] = [jax.tree.structure(t) for t in (tree, whole)]
    if structures[0] != structures[1]:
        return  # there is none, or the transformation says what is wrong
    for (path, leaf), target, entries in zip(named_leaves(tree), jax.tree.leaves(whole), lies, strict=True):
        shard = tuple(n // devices_of(names, sizes) for n, names in zip(target.shape, entries, strict=True))
        if jnp.ndim(leaf) == len(shard) and jnp.shape(leaf) != shard:
            raise ValueError(
                f"{function}: inside jax.shard_map leaf '{path}' of the {what} has shape {jnp.shape(leaf)}, and "
                f"param_specs divide it into shards of shape {shard}. Let in_specs give gradients and parameters the "
                "partitions of param_specs, and the state those of momentax.sharding.state_shardings."
            )
