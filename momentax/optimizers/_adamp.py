"""AdamP: Adam whose steps do not lengthen weights that a normalisation makes scale-invariant.

    u  = Adam's direction                                             (1)  scale_by_adam
    u' = u with its radial part removed where the gradient allows it,
         + lam r w                                                    (2)  project_radial around (1)
    w  <- w - eta u'                                                  (3)

Contract: optimizer (chain of a wrapper and the learning rate).
Source: Heo et al., AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights, ICLR 2021,
arXiv 2006.08217; official code clovaai/AdamP, which this chain reproduces.
Non-finite gradients enter the averages and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks
from momentax.routing import Routing
from momentax.transforms import scale_by_adam
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import project_radial


def adamp(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    delta: ScalarOrSchedule = 0.1,
    wd_ratio: ScalarOrSchedule = 0.1,
    nesterov: bool = False,
    weight_decay_mask: Mask | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamP. Defaults of the paper and of the official code, whose learning rate is 1e-3.

    Args:
      learning_rate: eta; number or schedule.
      b1: decay of the average gradient; number or schedule.
      b2: decay of the average squared gradient; number or schedule.
      eps: added to the root, and floor of the norms of the test; number or schedule.
      weight_decay: lam, decoupled, per unit of learning rate; number or schedule. None (off) is the code's default.
      delta: threshold of the cosine test; number or schedule.
      wd_ratio: factor of the decay where a projection was made; number or schedule.
      nesterov: look one step ahead, in AdamP's form.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf, as the code does.
      mu_dtype: dtype of the average gradient; None means the leaf's own, float32 for half precision.
      nu_dtype: dtype of the average squared gradient; None likewise.
      routing: states output and batch axes; None for the conventions of Flax.

    Raises:
      ValueError: a coefficient out of range, or a leaf whose output axes cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.adamp(1e-3, weight_decay=0.01, weight_decay_mask=momentax.routing.no_decay_on_vectors)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("adamp", learning_rate)
    direction = scale_by_adam(b1, b2, eps, nesterov=nesterov, mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    return optax.chain(
        project_radial(
            direction,
            delta=delta,
            wd_ratio=wd_ratio,
            weight_decay=weight_decay,
            weight_decay_mask=weight_decay_mask,
            eps=eps,
            routing=routing,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )
