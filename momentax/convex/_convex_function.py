"""What Lion-K and its theory ask of a convex function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from momentax.routing import Rule


@dataclasses.dataclass(frozen=True)
class ConvexFunction:
    """A convex function on arrays of any shape, with what Lion-K and its theory need of it.

    Attributes:
      name: for messages and plots.
      value: K(x), a scalar.
      subgradient: an element of the subdifferential at x, shaped like x; zero at zero.
      conjugate: K*(y) = sup_x <x, y> - K(x), a scalar; infinite where gauge(y) exceeds 1 by more than the root of the
        dtype's spacing, so that a weight which reached its bound in floating point has a finite penalty.
      gauge: a scalar that is at most 1 exactly where y lies in the closure of the domain of K*: the dual norm of a
        norm, 0 where every y is allowed. Weight decay lam implies gauge(lam w) <= 1.
      on: the same function for a leaf whose axes a routing rule states. Batch axes make independent matrices: values
        add, the gauge is the largest. None where axes do not matter.
      needs_axes: the function reads channels or matrices, so Lion-K always asks routing for the axes, and refuses
        leaves where they cannot be told. Called without a rule it reads an array as one matrix (in..., out), its last
        axis the channels, and arrays of rank 0 and 1 as vectors.
      scope: "leaf", or "global": the four functions take any tree, read as one long vector.
      smallest: least number of entries of a leaf, for each matrix of a stack.
    """

    name: str
    value: Callable[[Any], jax.Array]
    subgradient: Callable[[Any], Any]
    conjugate: Callable[[Any], jax.Array]
    gauge: Callable[[Any], jax.Array]
    on: "Callable[[Rule], ConvexFunction] | None" = None
    needs_axes: bool = False
    scope: str = "leaf"
    smallest: int = 0


def indicator(gauge: Callable[[Any], jax.Array]) -> Callable[[Any], jax.Array]:
    """The conjugate of a norm: zero in the dual unit ball, infinite outside."""

    def conjugate(y):
        size = gauge(y)
        return within(size, jnp.zeros_like(size))

    return conjugate


def within(size: jax.Array, penalty: jax.Array) -> jax.Array:
    """`penalty` where the gauge is at most 1, up to rounding; infinity elsewhere."""
    return jnp.where(size <= 1 + jnp.finfo(size.dtype).eps ** 0.5, penalty, jnp.inf)
