"""Decoupled weight decay: add a multiple of the weight to the direction.

    u' = u + lam w        (1)  and then, with the learning rate:  w <- w - eta u' = (1 - eta lam) w - eta u

u: direction, any shape; w: parameter, same shape; lam: `weight_decay`, per unit of learning rate.
Placed before a momentum transform instead of after it, this is L2 regularisation (coupled decay).

Contract: transform.
Source: Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019, arXiv 1711.05101, in the form of torch's
AdamW, where the learning rate multiplies the decay.
"""

import optax

from momentax import checks
from momentax.decaying import decaying
from momentax.typing import Mask, ScalarOrSchedule


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

    def leaf(u, w, decay, decays):
        return u + decay * w if decays else u  # (1)

    return decaying("decoupled", leaf, [weight_decay], weight_decay_mask, real=False)
