"""The mask of what a layer multiplies by."""

from typing import Any

import jax

from momentax.routing._resolve import Routing, assigned


def only_matrices(params: Any, routing: Routing | None = None) -> Any:
    """A mask of the matrices, stacked ones and output heads included: no vectors, no embeddings.

    Args:
      params: tree of arrays.
      routing: as given to the optimizer; None for the conventions of Flax. A mask with a routing of its own is
        functools.partial(momentax.routing.only_matrices, routing=...).

    Returns:
      A tree of bools like `params`. A leaf of rank two and more whose axes cannot be told is a matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> only_matrices({"dense": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}})
      {'dense': {'bias': False, 'kernel': True}}
    """
    matrices = [isinstance(rule, str) or rule.is_matrix for _, _, rule in assigned(params, routing)]
    return jax.tree.unflatten(jax.tree.structure(params), matrices)
