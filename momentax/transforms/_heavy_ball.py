"""Heavy-ball momentum: accumulate gradients, forget them geometrically.

    b_1 = g_1                                 (1)  first step; (1 - tau) g_1 with dampen_first=True
    b_t = mu b_{t-1} + (1 - tau) g_t          (2)  later steps
    u_t = b_t                                 (3)
    u_t = g_t + mu b_t                        (4)  with nesterov=True

g: gradient, any shape.  b: buffer `mu`, same shape, starts at zero.  mu: `b1`.  tau: `dampening`.

Contract: transform.
Source: Polyak, Some methods of speeding up the convergence of iteration methods, 1964; Sutskever et al., On the
importance of initialization and momentum in deep learning, ICML 2013 (4). Line (1) as in torch.optim.SGD, where
the first buffer is not dampened; dampen_first=True is the line of SGDP (arXiv 2006.08217, official code).
Non-finite gradients enter the buffer and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from momentax import checks, leaves
from momentax.typing import Count, ScalarOrSchedule


class HeavyBallState(NamedTuple):
    """State of `heavy_ball`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: buffer b, shaped like the parameters, starts at zero.
    """

    count: Count
    mu: optax.Updates


def heavy_ball(
    b1: ScalarOrSchedule = 0.9,
    dampening: ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    *,
    dampen_first: bool = False,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Accumulates gradients: the momentum of torch.optim.SGD and optax.trace, with schedules and dampening.

    Args:
      b1: decay mu of the buffer, in [0, 1]; number or schedule. 0.9 is customary; 1 forgets nothing.
      dampening: tau in (2); number or schedule. `dampening=b1` is an average that starts at the first gradient.
      nesterov: emit (4) instead of (3).
      dampen_first: dampen the first gradient too.
      mu_dtype: dtype of the buffer; None means the leaf's own, float32 for bfloat16 and float16 leaves.

    Returns:
      A transformation whose updates grow to g / (1 - b1) under a constant gradient g.

    Raises:
      ValueError: `b1` is a number outside [0, 1], or the gradients do not match the state.
      TypeError: a leaf is not floating (complex leaves are welcome).

    Example:
      >>> import jax.numpy as jnp, momentax, optax
      >>> tx = optax.chain(momentax.heavy_ball(0.5), optax.scale_by_learning_rate(1.0))
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(2), state, params)
      >>> print(updates)
      [-1.5 -1.5]
    """
    checks.check_interval("heavy_ball", b1=b1)

    def init(params):
        return HeavyBallState(
            count=jnp.zeros([], jnp.int32), mu=leaves.zeros_like("heavy_ball", params, mu_dtype, real=False)
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        decay = leaves.value_at(b1, state.count)
        kept = 1 - leaves.value_at(dampening, state.count)
        if not dampen_first:
            kept = jnp.where(state.count == 0, 1.0, kept)  # (1)

        def leaf(g, b, decay, kept):
            b = decay * b + kept * g  # (2)
            return (g + decay * b if nesterov else b), b  # (4), (3)

        updates, mu = leaves.lift("heavy_ball", leaf, updates, state=[state.mu], coefficients=[decay, kept], real=False)
        return updates, HeavyBallState(leaves.next_count(state.count), mu)

    return optax.GradientTransformationExtraArgs(init, update)
