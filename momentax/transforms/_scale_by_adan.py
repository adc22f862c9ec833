"""Adan: Nesterov momentum written with gradient differences, scaled as in Adam.

    d_t = g_t - g_{t-1},  d_1 = 0                              (1)
    m_t = b1 m_{t-1} + (1 - b1) g_t                            (2)
    v_t = b2 v_{t-1} + (1 - b2) d_t                            (3)
    n_t = b3 n_{t-1} + (1 - b3) (g_t + b2 d_t)^2               (4)
    D_t = sqrt(n_t) / sqrt(1 - prod b3) + eps                  (5)
    u_t = [m_t / (1 - prod b1) + b2 v_t / (1 - prod b2)] / D_t (6)

g: gradient, any shape; m, v, n: `mu`, `mu_difference`, `nu`, same shape, start at zero; products elementwise.
The betas are those of the official code, 1 - beta of the paper: (0.98, 0.92, 0.99) here is (0.02, 0.08, 0.01)
there. The look-ahead coefficient in (4) and (6) is therefore b2.

Restarts: `momentax.reset_momentum` around this returns m, v, n and the products of decays to zero, and then d = 0 as in
the first step. Schedules go on.

Contract: transform.
Source: Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, IEEE TPAMI 2024,
arXiv 2208.06677; official code sail-sg/Adan.
Departure: from Algorithm 1 of the paper, whose averages start at the first gradient without debiasing; the code,
with which its results were made, starts at zero and debiases. Restarting is the code's too (all but one table of
the paper run without it).
A zero gradient from the start gives a zero update. A spike of size S is seen by (3) as +S, then -S. Non-finite
gradients enter every average and stay until a reset; `optax.apply_if_finite` keeps them out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.typing import Count, ScalarOrSchedule


class ScaleByAdanState(NamedTuple):
    """State of `scale_by_adan`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: average gradient m, shaped like the parameters, starts at zero.
      mu_difference: average gradient difference v, likewise.
      nu: average squared look-ahead gradient n, likewise.
      minus_g_tm1: the previous gradient, NEGATED: a computed value is written in place, where handing the
        gradient itself on would cost a copy (12 words a parameter instead of 11).
      mu_weight: 1 - prod b1, scalar, starts at zero.
      mu_difference_weight: 1 - prod b2, likewise.
      nu_weight: 1 - prod b3, likewise.
    """

    count: Count
    mu: optax.Updates
    mu_difference: optax.Updates
    nu: optax.Updates
    minus_g_tm1: optax.Updates
    mu_weight: jax.Array
    mu_difference_weight: jax.Array
    nu_weight: jax.Array


def scale_by_adan(
    b1: ScalarOrSchedule = 0.98,
    b2: ScalarOrSchedule = 0.92,
    b3: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adan's direction. Do not use `optax.scale_by_adan` for it: its look-ahead coefficient is 1 - b2.

    Args:
      b1: decay of the average gradient, in [0, 1); number or schedule. Defaults of the official code.
      b2: decay of the average difference, and the look-ahead coefficient; likewise.
      b3: decay of the average squared look-ahead gradient; likewise.
      eps: added to the root, in units of the gradient; number or schedule.
      mu_dtype: dtype of m, v and the stored gradient; None means the leaf's own, float32 for half precision.
      nu_dtype: dtype of n; None likewise.

    Raises:
      ValueError: a decay is a number outside [0, 1), `eps` is negative, or the gradients do not match the state.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.scale_by_adan()
      >>> state = tx.init(jnp.zeros(2))
      >>> for _ in range(3):
      ...     updates, state = tx.update(jnp.array([0.3, -20.0]), state)
      >>> print(updates.round(4))
      [ 1. -1.]
    """
    checks.check_fraction("scale_by_adan", b1=b1, b2=b2, b3=b3)
    checks.check_non_negative("scale_by_adan", eps=eps)

    def init(params):
        def slot(dtype):
            return leaves.zeros_like("scale_by_adan", params, dtype)

        return ScaleByAdanState(
            count=jnp.zeros([], jnp.int32),
            mu=slot(mu_dtype),
            mu_difference=slot(mu_dtype),
            nu=slot(nu_dtype),
            minus_g_tm1=slot(mu_dtype),
            mu_weight=jnp.zeros([]),
            mu_difference_weight=jnp.zeros([]),
            nu_weight=jnp.zeros([]),
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        decays = [leaves.value_at(value, state.count) for value in (b1, b2, b3)]
        old_weights = (state.mu_weight, state.mu_difference_weight, state.nu_weight)
        weights = [scalars.average(weight, 1.0, decay) for weight, decay in zip(old_weights, decays, strict=True)]
        first = state.mu_weight == 0

        def leaf(g, m, v, n, minus_g_tm1, decay1, decay2, decay3, floor, weight1, weight2, weight3):
            d = jnp.where(first, 0, g + minus_g_tm1)  # (1)
            m = decay1 * m + (1 - decay1) * g  # (2)
            v = decay2 * v + (1 - decay2) * d  # (3)
            n = decay3 * n + (1 - decay3) * (g + decay2 * d) ** 2  # (4)
            root = jnp.sqrt(n) / jnp.sqrt(weight3) + floor  # (5)
            u = (m / weight1 + decay2 * v / weight2) / root  # (6)
            return u, m, v, n, -g

        updates, *slots = leaves.lift(
            "scale_by_adan",
            leaf,
            updates,
            state=[state.mu, state.mu_difference, state.nu, state.minus_g_tm1],
            coefficients=[*decays, leaves.value_at(eps, state.count), *map(scalars.nonzero, weights)],
        )
        return updates, ScaleByAdanState(leaves.next_count(state.count), *slots, *weights)

    return optax.GradientTransformationExtraArgs(init, update)
