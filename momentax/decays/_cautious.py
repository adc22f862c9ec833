"""Cautious weight decay: decay only the entries which the step already makes smaller.

    u' = u + lam [w u >= 0] w        (1)  entry by entry; the step is w <- w - eta u', so w u > 0 shrinks w

u: direction, any shape; w: parameter, same shape; lam: `weight_decay`, per unit of learning rate. Ties (w u = 0)
decay.

Contract: transform.
Source: the cautious decay of MuonH's code (microsoft/ArchScale, arXiv 2603.28743), mask min(sign(w u) + 1, 1).
"""

import jax.numpy as jnp
import optax

from momentax import checks
from momentax.decaying import decaying
from momentax.typing import Mask, ScalarOrSchedule


def cautious(
    weight_decay: ScalarOrSchedule, weight_decay_mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adds `weight_decay` times those parameters whose step already shrinks them.

    Args:
      weight_decay: lam, per unit of learning rate; number or schedule.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix of one, or a function of the parameters, for
        example `momentax.routing.no_decay_on_vectors`. None decays every leaf.

    Raises:
      ValueError: `weight_decay` is a negative number, `params` is missing, or the mask does not match it.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.decays.cautious(0.1)
      >>> params = jnp.array([10.0, -10.0])
      >>> print(tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)[0])
      [2. 1.]
    """
    checks.check_non_negative("cautious", weight_decay=weight_decay)

    def leaf(u, w, decay, decays):
        return u + jnp.where(w * u >= 0, decay * w, 0) if decays else u  # (1)

    return decaying("cautious", leaf, [weight_decay], weight_decay_mask)
