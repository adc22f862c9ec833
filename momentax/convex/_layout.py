"""How a leaf is read as independent groups, rows or matrices."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from momentax.leaves import folding
from momentax.routing import Rule, matrix, resolve, vector


def rule_of(name: str, x: jax.Array, rule: Rule | None) -> Rule:
    """The rule with axes counted from the front; where none was told, one matrix (in..., out) or one vector."""
    rank = jnp.ndim(x)
    if rule is None:
        rule = matrix(range(rank - 1), (rank - 1,)) if rank > 1 else vector()
    return resolve(name, x, lambda path, leaf: rule)[0]


def others(x: jax.Array, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of x that are not among `axes`, in order."""
    return tuple(axis for axis in range(jnp.ndim(x)) if axis not in axes)


def fold(x: jax.Array, *groups: Sequence[int]) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """x with the axes of each group merged into one, in this order; and the way back."""
    there, back = folding(x.shape, groups)
    return there(x), back
