"""AM-AdamW: AdamW whose momentum coefficient is chosen anew at every step, one for each leaf.

    d <- two-plane momentum of g in Adam's metric P                   (1)  adapt_memory, diagonal metric
    w <- (1 - eta mu) w - eta d / P                                   (2)  the same terminal

Contract: optimizer (one terminal).
Source: Topollai & Choromanska, Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization,
AISTATS 2026, arXiv 2510.04988. No official code; a third-party implementation, which this chain reproduces.
The proximity carries units of the gradient here: unlike Adam, AM-AdamW answers to a rescaling of the loss unless
proximity=0. One non-finite gradient poisons the state for good, unless skip_non_finite=True.
"""

from typing import Any

import optax

from momentax import checks
from momentax.routing import Routing
from momentax.transforms import adapt_memory
from momentax.typing import Mask, ScalarOrSchedule


def am_adamw(
    learning_rate: ScalarOrSchedule,
    b1_max: ScalarOrSchedule = 0.89,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    proximity: ScalarOrSchedule = 0.1,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    scope: str = "leaf",
    offset: str = "first_order",
    weight_decay_mask: Mask | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    skip_non_finite: bool = False,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AM-AdamW. Defaults as quoted for the method, whose learning rate is 1e-3.

    Args:
      learning_rate: eta; number or schedule.
      b1_max: largest coefficient; number or schedule. 0.9 - 0.1 * proximity.
      b2: decay of the average squared gradient; number or schedule.
      eps: added to the root; number or schedule.
      proximity: weight of staying near the step of the memory, in units of 1 / gradient; number or schedule.
      weight_decay: mu, decoupled, per unit of learning rate; number or schedule; None is off.
      scope: one coefficient a leaf ("leaf") or one for the model ("global").
      offset: "first_order", "value" (scope="global" only; pass `value=loss` to `update`) or "zero".
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters. None decays
        every leaf; the implementation leaves vectors out (`momentax.routing.no_decay_on_vectors`).
      mu_dtype: dtype of d; None means the leaf's own, float32 for half precision.
      nu_dtype: dtype of the average squared gradient; None likewise.
      skip_non_finite: skip steps whose gradients are not finite.
      routing: states batch axes of stacked leaves; None takes every leaf as one.

    Raises:
      ValueError: a coefficient out of range, or an unknown choice.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.am_adamw(1e-3, weight_decay=0.1)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("am_adamw", learning_rate)
    return adapt_memory(
        learning_rate,
        b1_max=b1_max,
        b2=b2,
        eps=eps,
        proximity=proximity,
        metric="diagonal",
        scope=scope,
        offset=offset,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        skip_non_finite=skip_non_finite,
        routing=routing,
    )
