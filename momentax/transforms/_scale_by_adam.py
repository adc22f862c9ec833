"""Adam's direction: the average gradient over the root of the average squared gradient.

    m_t = b1 m_{t-1} + (1 - b1) g_t               (1)
    v_t = b2 v_{t-1} + (1 - b2) g_t^2             (2)
    D_t = sqrt(v_t) / sqrt(1 - prod b2) + eps     (3)  eps after the debiasing, as in torch and the paper
    u_t = m_t / D_t / (1 - prod b1)               (4)
    u_t = [b1 m_t + (1 - b1) g_t] / D_t / (1 - prod b1)    (5)  with nesterov=True

g: gradient, any shape; m, v: averages `mu`, `nu`, same shape, start at zero; all products elementwise.
The products of decays are kept as averages of ones (`mu_weight`, `nu_weight`), so schedules are debiased exactly.

Contract: transform.
Source: Kingma & Ba, Adam, ICLR 2015 (arXiv 1412.6980); (5) as in AdamP (arXiv 2006.08217, official code), which
divides the Nesterov mixture by the plain correction.
Non-finite gradients enter both averages and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.typing import Count, ScalarOrSchedule


class ScaleByAdamState(NamedTuple):
    """State of `scale_by_adam`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: average gradient m, shaped like the parameters, starts at zero.
      nu: average squared gradient v, shaped like the parameters, starts at zero.
      mu_weight: 1 - prod b1, scalar, starts at zero.
      nu_weight: 1 - prod b2, scalar, starts at zero.
    """

    count: Count
    mu: optax.Updates
    nu: optax.Updates
    mu_weight: jax.Array
    nu_weight: jax.Array


def scale_by_adam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    nesterov: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction, with schedules for every coefficient and a dtype for each slot.

    Args:
      b1: decay of the average gradient, in [0, 1); number or schedule. 0.9 as in the paper.
      b2: decay of the average squared gradient, in [0, 1); number or schedule. 0.999 as in the paper.
      eps: added to the root, in units of the gradient; number or schedule. 1e-8 as in the paper.
      nesterov: emit (5) instead of (4). This is AdamP's form, not that of optax.nadam.
      mu_dtype: dtype of m; None means the leaf's own, float32 for bfloat16 and float16 leaves.
      nu_dtype: dtype of v; None likewise.

    Raises:
      ValueError: a decay is a number outside [0, 1), `eps` is negative, or the gradients do not match the state.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.scale_by_adam()
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(jnp.array([0.3, -20.0]), state)
      >>> print(updates.round(4))
      [ 1. -1.]
    """
    checks.check_fraction("scale_by_adam", b1=b1, b2=b2)
    checks.check_non_negative("scale_by_adam", eps=eps)

    def init(params):
        return ScaleByAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=leaves.zeros_like("scale_by_adam", params, mu_dtype),
            nu=leaves.zeros_like("scale_by_adam", params, nu_dtype),
            mu_weight=jnp.zeros([]),
            nu_weight=jnp.zeros([]),
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        decay1, decay2, floor = (leaves.value_at(value, state.count) for value in (b1, b2, eps))
        mu_weight = scalars.average(state.mu_weight, 1.0, decay1)
        nu_weight = scalars.average(state.nu_weight, 1.0, decay2)

        def leaf(g, m, v, decay1, decay2, floor, mu_weight, nu_weight):
            m = decay1 * m + (1 - decay1) * g  # (1)
            v = decay2 * v + (1 - decay2) * g * g  # (2)
            root = jnp.sqrt(v) / jnp.sqrt(nu_weight) + floor  # (3)
            u = decay1 * m + (1 - decay1) * g if nesterov else m
            return u / root / mu_weight, m, v  # (4), (5)

        coefficients = [decay1, decay2, floor, scalars.nonzero(mu_weight), scalars.nonzero(nu_weight)]
        updates, mu, nu = leaves.lift(
            "scale_by_adam", leaf, updates, state=[state.mu, state.nu], coefficients=coefficients
        )
        count = leaves.next_count(state.count)
        return updates, ScaleByAdamState(count, mu, nu, mu_weight, nu_weight)

    return optax.GradientTransformationExtraArgs(init, update)
