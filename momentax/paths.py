"""Leaves by name: the one spelling of paths that routing, masks, partitions and errors share."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import optax


def leaf_path(path: Sequence[Any]) -> str:
    """A key path as `block/dense/kernel`.

    Flax NNX shows `['kernel'].value` to `init` and `['kernel']` to `update`: a trailing `.value` is dropped
    when it is an attribute (an attention module may own a submodule called `value`: that is a key).

    >>> leaf_path(jax.tree_util.tree_leaves_with_path({"dense": {"kernel": 1.0}})[0][0])
    'dense/kernel'
    """
    keys = list(path)
    if keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name == "value":
        keys = keys[:-1]
    return "/".join(_key_name(key) for key in keys)


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            name = getattr(key, attribute)
            return "/".join(map(str, name)) if isinstance(name, tuple) else str(name)
    return str(key)


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, in flattening order.

    >>> named_leaves({"dense": {"kernel": 1.0}})
    [('dense/kernel', 1.0)]
    """
    return [(leaf_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)]


def paths_of(tree: Any) -> list[str]:
    """The paths of the leaves of a tree, in flattening order."""
    return [path for path, _ in named_leaves(tree)]


def closest(path: str, given: Collection[str]) -> str | None:
    """Of some paths the leaf itself, or else the nearest branch that it is on; None where there is none.

    >>> closest("block/dense/kernel", ["", "block", "block/den"])
    'block'
    """
    ends = [len(path), *(end for end in range(len(path) - 1, 0, -1) if path[end] == "/"), 0]
    return next((path[:end] for end in ends if path[:end] in given), None)


def is_part(tree: Any) -> bool:
    """Whether some of a tree is hidden, as inside `optax.masked` and `optax.partition`."""
    return any(map(_is_masked, jax.tree.leaves(tree, is_leaf=_is_masked)))


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
