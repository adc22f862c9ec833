"""Weight decay of the stepped weight: first the step, then the decay.

    w+ = (1 - eta lam) (w - eta u)                             (1)
    w+ - w = -eta [(1 - eta lam) u + lam w]                    (2)  the same, as an additive update

u: direction, any shape; w: parameter, same shape; eta: `learning_rate`; lam: `weight_decay`.
Decoupled decay has no cross term eta lam u: it is w+ = (1 - eta lam) w - eta u. Leaves outside the mask take the plain
step -eta u.

Contract: terminal (contains the learning rate and ends the chain).
Source: the code of SPAM (TianjinYellow/SPAM-Optimizer, arXiv 2501.06842), as its ancestor, the AdamW of Hugging Face.
"""

import optax

from momentax import checks
from momentax.decaying import decaying
from momentax.typing import Mask, ScalarOrSchedule


def after_step(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Turns a direction into a step followed by decay, (2).

    Args:
      learning_rate: eta; number or schedule.
      weight_decay: lam, per unit of learning rate; number or schedule.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix of one, or a function of the parameters, for
        example `momentax.routing.no_decay_on_vectors`. None decays every leaf.

    Raises:
      ValueError: a number is negative, `params` is missing, or the mask does not match it.
      TypeError: a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.decays.after_step(1.0, 0.25)
      >>> params = jnp.array([9.0])
      >>> print(params + tx.update(jnp.array([1.0]), tx.init(params), params)[0])
      [6.]
    """
    checks.check_non_negative("after_step", learning_rate=learning_rate, weight_decay=weight_decay)

    def leaf(u, w, rate, decay, decays):
        return -rate * ((1 - rate * decay) * u + decay * w) if decays else -rate * u  # (2)

    return decaying("after_step", leaf, [learning_rate, weight_decay], weight_decay_mask, real=False)
