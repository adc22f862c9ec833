"""AM-SGD: gradient descent whose momentum coefficient is chosen anew at every step.

    g <- g + lam w                                                    (1)  decays.decoupled before the memory: L2
    d <- two-plane momentum of g                                      (2)  adapt_memory, identity metric
    w <- w - eta d                                                    (3)

Contract: optimizer (chain of transforms; with offset="value" the learning rate moves into the terminal (2)).
Source: Topollai & Choromanska, Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization,
AISTATS 2026, arXiv 2510.04988 (AM-MSGD). No official code; a third-party implementation, which this chain reproduces.
Under a schedule the coefficient takes eta_{t-1} / eta_t = 1, as that implementation does; `adapt_memory(learning_rate)`
has the ratio. With offset="value" and weight decay, `value` must contain lam |w|^2 / 2,
since the gradient does.
d is an average: a rate tuned for heavy ball with b1 = 0.9 corresponds to one ten times as large here.
One non-finite gradient poisons d for good, unless skip_non_finite=True.
"""

from typing import Any

import optax

from momentax import checks
from momentax.decays import decoupled
from momentax.routing import Routing
from momentax.transforms import adapt_memory
from momentax.typing import Mask, ScalarOrSchedule


def am_sgd(
    learning_rate: ScalarOrSchedule,
    b1_max: ScalarOrSchedule = 0.9,
    proximity: ScalarOrSchedule = 0.1,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    scope: str = "global",
    offset: str = "first_order",
    weight_decay_mask: Mask | None = None,
    mu_dtype: Any = None,
    skip_non_finite: bool = False,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AM-SGD. Defaults as quoted for AM-MSGD.

    Args:
      learning_rate: eta; number or schedule.
      b1_max: largest coefficient; number or schedule.
      proximity: weight of staying near the step of the memory; number or schedule.
      weight_decay: lam, coupled (it enters the gradient, as in the implementation); number or schedule; None is off.
      scope: one coefficient for the model ("global") or one a leaf ("leaf").
      offset: "first_order", "value" (pass `value=loss` to `update`) or "zero".
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters. None decays
        every leaf; the implementation leaves vectors out (`momentax.routing.no_decay_on_vectors`).
      mu_dtype: dtype of d; None means the leaf's own, float32 for half precision.
      skip_non_finite: skip steps whose gradients are not finite.
      routing: states batch axes of stacked leaves for scope="leaf"; None takes every leaf as one.

    Raises:
      ValueError: a coefficient out of range, or an unknown choice.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.am_sgd(1.0, weight_decay=1e-4)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("am_sgd", learning_rate)
    terminal = offset == "value"
    momentum = adapt_memory(
        learning_rate if terminal else None,
        b1_max=b1_max,
        proximity=proximity,
        scope=scope,
        offset=offset,
        mu_dtype=mu_dtype,
        skip_non_finite=skip_non_finite,
        routing=routing,
    )
    before = [] if weight_decay is None else [decoupled(weight_decay, weight_decay_mask)]
    after = [] if terminal else [optax.scale_by_learning_rate(learning_rate)]
    return optax.chain(*before, momentum, *after)
