"""SGDP: SGD with momentum whose steps do not lengthen weights that a normalisation makes scale-invariant.

    b  = mu b + (1 - tau) g,  u = b or g + mu b                       (1)  heavy_ball, dampened from the first step
    u' = u with its radial part removed where the gradient allows it,
         + [lam / (1 - mu)] r w                                       (2)  project_radial around (1)
    w  <- w - eta u'                                                  (3)

Contract: optimizer (chain of a wrapper and the learning rate).
Source: Heo et al., AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights, ICLR 2021,
arXiv 2006.08217; official code clovaai/AdamP, which this chain reproduces.
variant="paper" projects the step alone. Without Nesterov the official code projects the momentum buffer in place, so
that the projected vector is what the next step remembers: variant="official".
Non-finite gradients enter the buffer and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks, conventions
from momentax.routing import Routing
from momentax.transforms import heavy_ball
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import project_radial


def sgdp(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.0,
    dampening: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    delta: ScalarOrSchedule = 0.1,
    wd_ratio: ScalarOrSchedule = 0.1,
    nesterov: bool = False,
    variant: str = "paper",
    weight_decay_mask: Mask | None = None,
    mu_dtype: Any = None,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGDP. Defaults of the official code; its examples use b1=0.9, nesterov=True, eta 0.1, weight decay 1e-5.

    Args:
      learning_rate: eta; number or schedule.
      b1: decay mu of the buffer; number or schedule.
      dampening: tau; number or schedule.
      eps: floor of the norms of the test; number or schedule.
      weight_decay: lam, decoupled; (2) divides it by 1 - mu; number or schedule. None (off) is the default of the code.
      delta: threshold of the cosine test; number or schedule.
      wd_ratio: factor of the decay where a projection was made; number or schedule.
      nesterov: step along g + mu b.
      variant: "paper" or "official"; they differ where nesterov=False.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf, as the code does.
      mu_dtype: dtype of the buffer; None means the leaf's own, float32 for half precision.
      routing: states output and batch axes; None for the conventions of Flax.

    Raises:
      ValueError: a coefficient out of range, an unknown variant, or a leaf whose output axes cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.sgdp(0.1, b1=0.9, weight_decay=1e-5, nesterov=True)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("sgdp", learning_rate)
    checks.check_choice("sgdp", "variant", variant, ("paper", "official"))
    direction = heavy_ball(b1, dampening, nesterov, dampen_first=True, mu_dtype=mu_dtype)
    if weight_decay is not None:
        checks.check_fraction("sgdp", b1=b1)  # (2) divides by 1 - mu
        weight_decay = conventions.heavy_ball_to_average(weight_decay, b1)
    return optax.chain(
        project_radial(
            direction,
            delta=delta,
            wd_ratio=wd_ratio,
            weight_decay=weight_decay,
            weight_decay_mask=weight_decay_mask,
            eps=eps,
            project_buffer=variant == "official" and not nesterov,
            routing=routing,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )
