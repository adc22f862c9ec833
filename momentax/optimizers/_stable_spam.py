"""Stable-SPAM: Adam behind two filters that learn the usual size of gradients, with momentum that is reset.

    g  = gradient, entries above the usual largest one scaled down      (1)  clip_to_average_max
    g  <- scaled to the usual norm                                      (2)  scale_to_average_norm, gamma1 times c
    m, v <- 0 at every reset                                            (3)  reset_momentum, without warm-up
    u  = Adam's direction with b1 times c                               (4)  scale_by_adam
    w  <- (1 - eta lam) w - eta u                                       (5)  decays.decoupled
    c  = eta_min + (1 - eta_min) [1 + cos(pi t / (T + 1))] / 2          (6)  1 without `total_steps` T

Contract: optimizer (chain of transforms, a wrapper around one, and a terminal).
Source: Huang et al., Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam, ICML 2025, arXiv 2502.17055;
official code TianjinYellow/StableSPAM, which variant="official" reproduces.
Departure: variant="paper" resets before a step, restarts the debiasing of (4) with it and no other, and c stays at
eta_min after T. The code takes the reset step with the old moments and the debiasing of a first step, and clears them
then; one counter, set to 1 at resets, debiases all five averages, of which three are not reset: the bound of (1) is
some hundred times too large after each reset; c rises again after T; and the maximum of amsgrad outlives resets.
Non-finite gradients enter the averages and stay; `optax.apply_if_finite` keeps them out.
"""

from collections.abc import Callable
from typing import Any

import optax

from momentax import checks, clocks
from momentax.decays import take_step
from momentax.routing import Routing
from momentax.transforms import clip_to_average_max, scale_by_adam, scale_to_average_norm
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import reset_momentum


def stable_spam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    gamma1: ScalarOrSchedule | None = 0.7,
    gamma2: ScalarOrSchedule = 0.9,
    gamma3: ScalarOrSchedule = 0.999,
    reset_every: int | None = 1000,
    total_steps: int | None = None,
    eta_min: float = 0.5,
    amsgrad: bool = False,
    variant: str = "paper",
    weight_decay_mask: Mask | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Stable-SPAM. Defaults of the official code, whose learning rate is 1e-3.

    The code's recipes: 4-bit training gamma1, gamma2, gamma3 = 0.7, 0.9, 0.999 with resets every 500 steps; bfloat16
    0.85, 0.99999, 0.999 with resets every 1000.

    Args:
      learning_rate: eta; number or schedule.
      b1: decay of the average gradient; number or schedule.
      b2: decay of the average squared gradient; number or schedule.
      eps: added to the roots of (2) and (4); number or schedule.
      weight_decay: lam, per unit of learning rate; number or schedule. None (off) is the default of the code.
      gamma1: decay of the average norm; number or schedule; None takes b1 (-1 in the code).
      gamma2: decay of the average squared norm; number or schedule.
      gamma3: decay of the average largest entry; number or schedule.
      reset_every: steps between resets; None never resets.
      total_steps: T, over which b1 and gamma1 shrink by (6); None is off.
      eta_min: what they shrink to, as a share, in [0, 1].
      amsgrad: divide by the root of the largest average square so far.
      variant: "paper" or "official": see the departure of this file.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf, as the code does.
      mu_dtype: dtype of m; None means the leaf's own, float32 for half precision.
      nu_dtype: dtype of v; None likewise.
      routing: states batch axes of stacked leaves, whose matrices then have sizes of their own; None, as the code,
        takes every leaf as one.

    Raises:
      ValueError: a coefficient out of range, or an unknown variant.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.stable_spam(1e-3, reset_every=500)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("stable_spam", learning_rate)
    checks.check_choice("stable_spam", "variant", variant, ("paper", "official"))
    checks.check_fraction("stable_spam", b1=b1, gamma1=gamma1)
    checks.check_interval("stable_spam", eta_min=eta_min)
    checks.check_steps("stable_spam", total_steps=total_steps, reset_every=reset_every)
    official = variant == "official"

    def debias(set_back: bool) -> bool | Callable[[Any], Any]:
        return clocks.counter_of_stable_spam(reset_every, set_back=set_back) if official else True

    def shrunk(decay):
        return clocks.cosine_shrunk(decay, total_steps, eta_min, periodic=official)

    direction = scale_by_adam(
        shrunk(b1), b2, eps, debias=debias(True), amsgrad=amsgrad, mu_dtype=mu_dtype, nu_dtype=nu_dtype
    )
    if reset_every is not None and official:
        direction = reset_momentum(direction, reset_every, keep=("nu_max",), when="after")
    elif reset_every is not None:
        direction = reset_momentum(direction, reset_every)
    norm_decay = shrunk(b1 if gamma1 is None else gamma1)
    return optax.chain(
        clip_to_average_max(gamma3, debias=debias(False), routing=routing),
        scale_to_average_norm(norm_decay, gamma2, eps, debias=debias(False), routing=routing),
        direction,
        take_step(learning_rate, weight_decay, weight_decay_mask),
    )
