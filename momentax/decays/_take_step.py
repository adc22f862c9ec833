"""The end of a chain: the learning rate, and the weight decay in one of its forms.

    w <- w - eta u                               (1)  without weight decay
    w <- (1 - eta lam) w - eta u                 (2)  decay="decoupled"
    w <- (w - eta u) / (1 + eta lam)             (3)  decay="proximal"
    w <- (1 - eta lam) (w - eta u)               (4)  decay="after_step"
    w <- w - eta lam [w u >= 0] w - eta u        (5)  decay="cautious", entry by entry

u: direction, any shape; w: parameter, same shape; eta: `learning_rate`; lam: `weight_decay`.

Contract: terminal (contains the learning rate and ends the chain).
Source: the files of the four forms in `momentax.decays`.
"""

import optax

from momentax import checks
from momentax.decays._after_step import after_step
from momentax.decays._cautious import cautious
from momentax.decays._decoupled import decoupled
from momentax.decays._proximal import proximal
from momentax.typing import Mask, ScalarOrSchedule


def take_step(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    *,
    decay: str = "decoupled",
) -> optax.GradientTransformationExtraArgs:
    """Turns a direction into the step, with weight decay where it is given.

    Args:
      learning_rate: eta; number or schedule.
      weight_decay: lam, per unit of learning rate; number or schedule; None is off.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix of one, or a function of the parameters, for
        example `momentax.routing.no_decay_on_vectors`. None decays every leaf.
      decay: "decoupled", (2), "proximal", (3), "after_step", (4), or "cautious", (5).

    Raises:
      ValueError: a number is negative, the form is unknown, `params` is missing, or the mask does not match it.
      TypeError: a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.decays.take_step(0.5, 0.2, decay="decoupled")
      >>> params = jnp.array([10.0])
      >>> print(params + tx.update(jnp.array([2.0]), tx.init(params), params)[0])
      [8.]
    """
    checks.check_learning_rate("take_step", learning_rate)
    checks.check_choice("take_step", "decay", decay, ("decoupled", "proximal", "after_step", "cautious"))
    if weight_decay is None:
        return optax.with_extra_args_support(optax.scale_by_learning_rate(learning_rate))
    if decay == "proximal":
        return proximal(learning_rate, weight_decay, weight_decay_mask)
    if decay == "after_step":
        return after_step(learning_rate, weight_decay, weight_decay_mask)
    added = cautious if decay == "cautious" else decoupled
    return optax.chain(added(weight_decay, weight_decay_mask), optax.scale_by_learning_rate(learning_rate))
