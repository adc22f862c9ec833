"""Proximal weight decay: the step and the decay solved together.

    w+ = (w - eta u) / (1 + eta lam)                        (1)
    w+ - w = -[eta / (1 + eta lam)] (u + lam w)             (2)  the same, as an additive update

u: direction, any shape; w: parameter, same shape; eta: `learning_rate`; lam: `weight_decay`.
(1) minimises <u, w+> + |w+ - w|^2 / (2 eta) + (lam / 2) |w+|^2 over w+. Decoupled decay with rate eta is the proximal
one with rate eta / (1 - eta lam). Leaves outside the mask take the plain step -eta u.

Contract: terminal (contains the learning rate and ends the chain).
Source: Xie et al., Adan, IEEE TPAMI 2024, arXiv 2208.06677; the implicit scheme of Lion-K, arXiv 2310.05898.
"""

import optax

from momentax import checks
from momentax.decaying import decaying
from momentax.typing import Mask, ScalarOrSchedule


def proximal(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Turns a direction into the step of proximal weight decay, (2).

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
      >>> tx = momentax.decays.proximal(1.0, 0.25)
      >>> params = jnp.array([11.0])
      >>> print(params + tx.update(jnp.array([1.0]), tx.init(params), params)[0])
      [8.]
    """
    checks.check_non_negative("proximal", learning_rate=learning_rate, weight_decay=weight_decay)

    def leaf(u, w, rate, decay, decays):
        return -rate / (1 + rate * decay) * (u + decay * w) if decays else -rate * u  # (2)

    return decaying("proximal", leaf, [learning_rate, weight_decay], weight_decay_mask, real=False)
