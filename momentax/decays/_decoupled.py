"""Decoupled weight decay: add a multiple of the weight to the direction.

    u' = u + lam w        (1)  and then, with the learning rate:  w <- w - eta u' = (1 - eta lam) w - eta u

u: direction, any shape; w: parameter, same shape; lam: `weight_decay`, per unit of learning rate.
Placed before a momentum transform instead of after it, this is L2 regularisation (coupled decay).

Contract: transform.
Source: Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019, arXiv 1711.05101, in the form of torch's
AdamW, where the learning rate multiplies the decay.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from momentax import checks, leaves
from momentax.typing import Count, Mask, ScalarOrSchedule


class DecoupledState(NamedTuple):
    """State of `decoupled`.

    Attributes:
      count: steps taken, int32 scalar.
    """

    count: Count


def decoupled(
    weight_decay: ScalarOrSchedule, weight_decay_mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adds `weight_decay` times the parameters to the updates.

    Args:
      weight_decay: lam, per unit of learning rate; number or schedule.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix of one, or a function of the parameters, for
        example `momentax.routing.no_decay_on_vectors`. None decays every leaf.

    Raises:
      ValueError: `weight_decay` is a negative number, `params` is missing, or the mask does not match it.
      TypeError: a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.decays.decoupled(0.1)
      >>> params = jnp.array([10.0])
      >>> print(tx.update(jnp.array([1.0]), tx.init(params), params)[0])
      [2.]
    """
    checks.check_non_negative("decoupled", weight_decay=weight_decay)

    def init(params):
        leaves.check_leaves("decoupled", params, real=False)
        return DecoupledState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        params = leaves.require_params("decoupled", params)
        mask = leaves.mask_leaves("decoupled", weight_decay_mask, params)
        decay = leaves.value_at(weight_decay, state.count)

        def leaf(u, w, decay, decays):
            return u + decay * w if decays else u  # (1)

        updates = leaves.lift(
            "decoupled", leaf, updates, reads=[params], coefficients=[decay], per_leaf=[mask], real=False
        )
        return updates, DecoupledState(leaves.next_count(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
