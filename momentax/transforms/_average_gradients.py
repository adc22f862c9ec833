"""Exponential moving average of gradients, debiased by the product of its decays.

    m_t = b_t m_{t-1} + (1 - b_t) g_t             (1)
    w_t = b_t w_{t-1} + (1 - b_t)                 (2)  the same average of ones: w_t = 1 - prod_{i<=t} b_i
    u_t = m_t / w_t                               (3)  m_t with debias=False
    u_t = [b_t m_t + (1-b_t) g_t] / [b_t w_t + (1-b_t)]    (4)  nesterov=True; the numerator with debias=False
    u_t = b_t m_t / [b_t w_t + (1-b_t)] + (1-b_t) g_t / w_t (5)  nesterov=True, debias="optax": as optax.contrib.muon

g: gradient, any shape.  m: average `mu`, same shape, starts at zero.  w: scalar, starts at zero.  b: `b1`.
A constant gradient g gives u = g at every step of (3) and (4), under any schedule of b; (5) gives more than g at first.

Contract: transform.
Source: Kingma & Ba, Adam, ICLR 2015 (arXiv 1412.6980), for (1) and (3); (2) holds for scheduled decays, where
1 - b^t does not, and loses no digits at the first steps.
Non-finite gradients enter the average and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.typing import Count, ScalarOrSchedule


class AverageGradientsState(NamedTuple):
    """State of `average_gradients`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: average m, shaped like the parameters, starts at zero.
      mu_weight: w, the same average of ones: scalar, starts at zero.
    """

    count: Count
    mu: optax.Updates
    mu_weight: jax.Array


def average_gradients(
    b1: ScalarOrSchedule = 0.9,
    *,
    debias: bool | str = True,
    nesterov: bool = False,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each gradient by an exponential moving average of the gradients so far.

    Args:
      b1: decay of the average, in [0, 1); number or schedule. 0.9 as in Adam.
      debias: divide by (2), so that early averages are not too short; "optax" with nesterov is (5).
      nesterov: look one step ahead, (4) or (5).
      mu_dtype: dtype of the average; None means the leaf's own, float32 for bfloat16 and float16 leaves.

    Raises:
      ValueError: `b1` is a number outside [0, 1), or the gradients do not match the state.
      TypeError: a leaf is not floating (complex leaves are welcome).

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.average_gradients(0.9)
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(jnp.array([1.0, -2.0]), state)
      >>> print(updates)
      [ 1. -2.]
    """
    checks.check_fraction("average_gradients", b1=b1)
    checks.check_choice("average_gradients", "debias", debias, (True, False, "optax"))

    def init(params):
        return AverageGradientsState(
            count=jnp.zeros([], jnp.int32),
            mu=leaves.zeros_like("average_gradients", params, mu_dtype, real=False),
            mu_weight=jnp.zeros([]),
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        decay = leaves.value_at(b1, state.count)
        weight = scalars.average(state.mu_weight, 1.0, decay)  # (2)
        mixed = scalars.average(weight, 1.0, decay) if nesterov else weight
        divisor = scalars.nonzero(mixed) if debias else 1.0
        ahead = divisor / scalars.nonzero(weight) if debias == "optax" else 1.0

        def leaf(g, m, decay, divisor, ahead):
            m = decay * m + (1 - decay) * g  # (1)
            u = decay * m + (1 - decay) * ahead * g if nesterov else m
            return u / divisor, m  # (3), (4), (5)

        updates, mu = leaves.lift(
            "average_gradients", leaf, updates, state=[state.mu], coefficients=[decay, divisor, ahead], real=False
        )
        return updates, AverageGradientsState(leaves.next_count(state.count), mu, weight)

    return optax.GradientTransformationExtraArgs(init, update)
