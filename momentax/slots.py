"""Which leaves of a state mirror a parameter: the slots in which optimizers remember something for every weight."""

from typing import Any

import jax
import jax.numpy as jnp

from momentax.leaves import leaf_path


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
    places = {leaf_path(path): at for at, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params))}
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    named = [(leaf_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]
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


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    different = [(a, b) for a, b in zip(shape, whole, strict=False) if a != b]
    return len(shape) == len(whole) and (not different or len(different) == 1 and different[0][0] < different[0][1])
