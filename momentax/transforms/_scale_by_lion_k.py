"""Lion-K: step along the subgradient of a convex function at the momentum.

    c_t = b1 m_{t-1} + (1 - b1) g_t        (1)  what is shown to K
    u_t = dK(c_t)                          (2)  K = l1 is Lion: u = sign(c)
    m_t = b2 m_{t-1} + (1 - b2) g_t        (3)  what is remembered

g: gradient, any shape; m: `mu`, same shape, starts at zero; dK: a subgradient of the convex function K.

With decoupled weight decay lam, w <- (1 - eta lam) w - eta u, the chain minimises f(w) + K*(lam w) / lam, K* the
conjugate of K: for l1 it keeps every |w_i| <= 1 / lam. Without decay there is no constraint.

Contract: transform.
Source: Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023, arXiv 2302.06675 (Lion); Chen et al.,
Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts, ICLR 2024, arXiv 2310.05898 (Lion-K, in the
sign convention m -> -m).
No eps and no debiasing; dK(0) = 0. Non-finite gradients enter the momentum and stay; `optax.apply_if_finite` keeps
them out.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from momentax import checks, leaves
from momentax.convex import ConvexFunction, l1
from momentax.typing import Count, ScalarOrSchedule


class ScaleByLionKState(NamedTuple):
    """State of `scale_by_lion_k`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: momentum m, shaped like the parameters, starts at zero.
    """

    count: Count
    mu: optax.Updates


def scale_by_lion_k(
    convex: ConvexFunction | None = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    *,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of Lion-K.

    Args:
      convex: the convex function K from `momentax.convex`; None means `l1()`, Lion.
      b1: weight of the memory in (1), in [0, 1); number or schedule. 0.9 as in Lion; 0.95 for language models.
      b2: decay of the memory in (3), in [0, 1); number or schedule. 0.99 as in Lion; 0.98 for language models.
      mu_dtype: dtype of m; None means the leaf's own, float32 for bfloat16 and float16 leaves.

    Raises:
      ValueError: a decay is a number outside [0, 1), or the gradients do not match the state.
      TypeError: `convex` is not a ConvexFunction, or a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.scale_by_lion_k(momentax.convex.huber(1.0))
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(jnp.array([5.0, -40.0]), state)
      >>> print(updates)
      [ 0.5 -1. ]
    """
    convex = l1() if convex is None else convex
    if not isinstance(convex, ConvexFunction):
        raise TypeError(
            f"scale_by_lion_k: `convex` must be a ConvexFunction such as momentax.convex.l1(); got {convex!r}."
        )
    checks.check_fraction("scale_by_lion_k", b1=b1, b2=b2)

    def init(params):
        mu = leaves.zeros_like("scale_by_lion_k", params, mu_dtype)
        return ScaleByLionKState(count=jnp.zeros([], jnp.int32), mu=mu)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args

        def leaf(g, m, shown, kept):
            c = shown * m + (1 - shown) * g  # (1)
            return convex.subgradient(c), kept * m + (1 - kept) * g  # (2), (3)

        coefficients = [leaves.value_at(value, state.count) for value in (b1, b2)]
        updates, mu = leaves.lift("scale_by_lion_k", leaf, updates, state=[state.mu], coefficients=coefficients)
        return updates, ScaleByLionKState(leaves.next_count(state.count), mu)

    return optax.GradientTransformationExtraArgs(init, update)
