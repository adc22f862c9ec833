"""Adan: adaptive Nesterov momentum with gradient differences and proximal weight decay.

    g  = all gradients, shortened together to `max_grad_norm`         (1)  clip_global_norm, where it is given
    u  = Adan's direction                                             (2)  scale_by_adan; restarts: reset_momentum
    w  <- (w - eta u) / (1 + eta lam)                                 (3)  decays.proximal
    w  <- (1 - eta lam) w - eta u                                     (4)  decay="decoupled" (`no_prox` of the code)

Contract: optimizer (chain of transforms and a terminal).
Source: Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, IEEE TPAMI 2024,
arXiv 2208.06677; official code sail-sg/Adan, which this chain reproduces.
`optax.adan` is another algorithm: it multiplies by 1 - b2 where the look-ahead coefficient is b2, and decays as AdamW
does.
Non-finite gradients enter the averages and stay until a restart; `optax.apply_if_finite` keeps them out.
"""

from collections.abc import Callable
from typing import Any

import optax

from momentax import checks, clocks
from momentax.decays import take_step
from momentax.transforms import clip_global_norm, scale_by_adan
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import reset_momentum


def adan(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.98,
    b2: ScalarOrSchedule = 0.92,
    b3: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    max_grad_norm: ScalarOrSchedule | None = None,
    decay: str = "proximal",
    restart_every: int | None = None,
    restart_when: Callable[..., Any] | None = None,
    weight_decay_mask: Mask | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adan. Defaults of the official code, whose learning rate is 1e-3; its recipes use weight decay 0.02.

    Args:
      learning_rate: eta; number or schedule. The authors advise 5 to 10 times that of AdamW.
      b1: decay of the average gradient (1 - beta1 of the paper); number or schedule.
      b2: decay of the average difference and look-ahead coefficient (1 - beta2 of the paper); number or schedule.
      b3: decay of the average squared look-ahead gradient (1 - beta3 of the paper); number or schedule.
      eps: added to the root; number or schedule.
      weight_decay: lam, per unit of learning rate; number or schedule. None (off) is the default of the code.
      max_grad_norm: bound of the joint gradient norm; number or schedule; None (off) is the default of the code.
      decay: "proximal", (3), or "decoupled", (4).
      restart_every: restart after every K steps; None never. The authors do so in one table only.
      restart_when: `f(count, updates, params) -> bool scalar`; restart before the steps where it holds.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf, as the code does.
      mu_dtype: dtype of the averages and the stored gradient; None means the leaf's own, float32 for half precision.
      nu_dtype: dtype of the average square; None likewise.

    Raises:
      ValueError: a coefficient out of range, or an unknown `decay`.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.adan(1e-3, weight_decay=0.02)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("adan", learning_rate)
    checks.check_choice("adan", "decay", decay, ("proximal", "decoupled"))
    checks.check_steps("adan", restart_every=restart_every)
    direction = scale_by_adan(b1, b2, b3, eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    if restart_every is not None:
        direction = reset_momentum(direction, clocks.apart(restart_every))
    if restart_when is not None:
        direction = reset_momentum(direction, restart_when)
    clips = [] if max_grad_norm is None else [clip_global_norm(max_grad_norm, eps)]
    return optax.chain(*clips, direction, take_step(learning_rate, weight_decay, weight_decay_mask, decay=decay))
