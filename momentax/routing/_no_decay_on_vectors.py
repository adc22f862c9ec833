"""The customary weight-decay mask."""

from typing import Any

import jax

from momentax.routing._resolve import assigned


def no_decay_on_vectors(params: Any) -> Any:
    """A mask that decays everything but vectors: biases, scales and scalars, stacked ones included.

    Args:
      params: tree of arrays.

    Returns:
      A tree of bools like `params`: False for vectors. A leaf whose axes cannot be told is no vector, and decays.

    Example:
      >>> import jax.numpy as jnp
      >>> no_decay_on_vectors({"dense": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}})
      {'dense': {'bias': False, 'kernel': True}}
    """
    decays = [isinstance(rule, str) or rule.kind != "vector" for _, _, rule in assigned(params, None)]
    return jax.tree.unflatten(jax.tree.structure(params), decays)
