"""The customary weight-decay mask."""

from typing import Any

import jax

from momentax.routing._resolve import Routing, assigned


def no_decay_on_vectors(params: Any, routing: Routing | None = None) -> Any:
    """A mask that decays everything but vectors: biases, scales and scalars, stacked ones included.

    Args:
      params: tree of arrays.
      routing: as given to the optimizer; None for the conventions of Flax. A mask with a routing of its own is
        functools.partial(momentax.routing.no_decay_on_vectors, routing=...).

    Returns:
      A tree of bools like `params`: False for vectors. A leaf whose axes cannot be told is no vector, and decays.

    Example:
      >>> import jax.numpy as jnp
      >>> no_decay_on_vectors({"dense": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}})
      {'dense': {'bias': False, 'kernel': True}}
    """
    decays = [isinstance(rule, str) or rule.kind != "vector" for _, _, rule in assigned(params, routing)]
    return jax.tree.unflatten(jax.tree.structure(params), decays)
