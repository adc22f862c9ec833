"""Shorten all gradients together when their joint norm exceeds a bound.

    c_t = min(1, G / (||g_t|| + eps))     (1)  one norm over all leaves
    u_t = c_t g_t                         (2)

g: gradients, any shapes.  G: `max_norm`, in units of the gradient.

Contract: transform; couples all leaves through one scalar.
Source: Pascanu et al., On the difficulty of training recurrent neural networks, ICML 2013 (arXiv 1211.5063); eps as
in the official code of Adan (arXiv 2208.06677). `optax.clip_by_global_norm` has no eps.
Departure: Adan's code sums the norm in float32 for every dtype; here it is float32 or wider, as the leaves are.
A zero gradient passes through. An infinite entry makes c = 0 and NaN of that entry; the finite ones become 0.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.typing import Count, ScalarOrSchedule


class ClipGlobalNormState(NamedTuple):
    """State of `clip_global_norm`.

    Attributes:
      count: steps taken, int32 scalar.
    """

    count: Count


def clip_global_norm(max_norm: ScalarOrSchedule, eps: ScalarOrSchedule = 1e-8) -> optax.GradientTransformationExtraArgs:
    """Scales all gradients together so that their joint Euclidean norm is at most `max_norm`.

    Args:
      max_norm: the bound G, above zero, in units of the gradient; number or schedule.
      eps: added to the norm, in the same units; number or schedule. 1e-8 as in Adan's code.

    Raises:
      ValueError: `max_norm` is a number that is not above zero, or `eps` is negative.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.clip_global_norm(1.0)
      >>> updates, _ = tx.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, tx.init({}))
      >>> print(updates["a"].round(3), updates["b"].round(3))
      [0.6] [0.8]
    """
    checks.check_positive("clip_global_norm", max_norm=max_norm)
    checks.check_non_negative("clip_global_norm", eps=eps)

    def init(params):
        leaves.check_leaves("clip_global_norm", params)
        return ClipGlobalNormState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        bound, floor = (leaves.value_at(value, state.count) for value in (max_norm, eps))
        squares = leaves.each("clip_global_norm", lambda g: jnp.sum(g * g), updates)
        factor = jnp.minimum(1.0, bound / (jnp.sqrt(scalars.total(squares)) + floor))  # (1)
        updates = leaves.lift("clip_global_norm", lambda g, c: c * g, updates, coefficients=[factor])  # (2)
        return updates, ClipGlobalNormState(leaves.next_count(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
