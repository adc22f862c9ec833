"""Which leaves of a state mirror a parameter: the slots in which optimizers remember something for every weight."""

from typing import Any

import jax
import jax.numpy as jnp

from momentax.paths import named_leaves, paths_of


def mirrored(state: Any, params: Any) -> list[int | None]:
    """For each leaf of a state the position of the parameter that it mirrors, both in flattening order, or None.

    A leaf mirrors a parameter when it stands at the parameter's place in a branch like the parameters, of which some
    may be missing (`optax.masked`), and has its shape, or is shorter along one axis, as the buffers of
    `momentax.sparse_momentum` are. A branch is like the parameters when each of its leaves is at the place of one; of
    branches inside each other the outermost counts.

    >>> import optax
    >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    >>> state = optax.adam(0.1).init(params)
    >>> mirrored(state, params)  # count, mu and nu, each bias before kernel
    [None, 0, 1, 0, 1]
    """
    places = {path: at for at, path in enumerate(paths_of(params))}
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    named = named_leaves(state)
    split = [path.split("/") if path else [] for path, _ in named]
    alike: dict[tuple[str, ...], bool] = {}
    for parts in split:
        for cut in range(len(parts) + 1):
            branch = tuple(parts[:cut])
            alike[branch] = alike.get(branch, True) and "/".join(parts[cut:]) in places
    found: list[int | None] = []
    for parts, (_, leaf) in zip(split, named, strict=True):
        outermost = next((parts[cut:] for cut in range(len(parts) + 1) if alike[tuple(parts[:cut])]), None)
        at = None if outermost is None else places["/".join(outermost)]
        found.append(at if at is not None and _fits(jnp.shape(leaf), shapes[at]) else None)
    return found


def chosen(function: str, state: Any, params: Any, slots: tuple[str, ...] | None) -> list[bool]:
    """For each leaf of a state whether it is a slot that is to be stored in another way.

    Args:
      function: name of the public function, for errors.
      state: state of an optimizer.
      params: the parameters, or updates like them.
      slots: names of the state fields that are chosen; None: all. Single numbers are never chosen.

    Raises:
      TypeError: `slots` is a string.
      ValueError: a name that no slot has.
    """
    if isinstance(slots, str):
        raise TypeError(f"{function}: `slots` must be a tuple of field names; got the string {slots!r}.")
    named = [
        ({key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)}, leaf, at)
        for (path, leaf), at in zip(jax.tree_util.tree_leaves_with_path(state), mirrored(state, params), strict=True)
    ]
    known = set().union(*(fields for fields, _, at in named if at is not None))
    unknown = sorted(set(slots or ()) - known)
    if unknown and jax.tree.leaves(params):
        raise ValueError(
            f"{function}: no slot of the state is called '{unknown[0]}'; there are {sorted(known)}: name some of these "
            "in `slots`, or leave it out."
        )
    return [
        at is not None and jnp.size(leaf) > 1 and (slots is None or not fields.isdisjoint(slots))
        for fields, leaf, at in named
    ]


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    different = [(a, b) for a, b in zip(shape, whole, strict=False) if a != b]
    return len(shape) == len(whole) and (not different or len(different) == 1 and different[0][0] < different[0][1])
