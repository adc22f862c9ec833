"""AuON's brake: divide by the root mean square of the hyperbolic cosines of a normalised update.

    X   = U / (|U|_F + eps)                                     (1)
    r^2 = mean(cosh(gamma X)^2) = 1 + mean(sinh(gamma X)^2)     (2)
    u   = X / (r + 1e-8)                                        (3)  variant="paper"
    u   = U / (r + 1e-8)                                        (4)  variant="official"

U: incoming update, any shape; each matrix of a stack alone where `routing` states stacks, the whole leaf otherwise.

The cosines enter through the one number r, so the direction of U is kept. Since |X|_F <= 1, r lies between 1 and
sqrt(1 + sinh(gamma)^2 / N) for N entries: at most 1.0003 for gamma = 1.5 and N = 10^4. So (4) is the identity up to a
factor that vanishes with the size of the matrix, and (3) is division by the Frobenius norm up to the same factor, which
bounds the update: |u|_2 <= |u|_F <= 1. Singular values keep their ratios.

Contract: transform.
Source: Maity, AuON: A Linear-time Alternative to Semi-Orthogonal Momentum Updates, arXiv 2509.24320 (3), where gamma is
1; official code ryyzn9/AuON (4), where gamma is 1.5.
Departure: the code takes whole leaves; so does this transform without `routing`.
Zero gives zero. Where gamma X exceeds 44 in float32, r overflows, and an update of some 1e-19 becomes zero. An
update with an entry that is not finite becomes NaN.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.routing import Routing
from momentax.typing import Count, ScalarOrSchedule


class ScaleByCoshRmsState(NamedTuple):
    """State of `scale_by_cosh_rms`.

    Attributes:
      count: steps taken, int32 scalar.
    """

    count: Count


def scale_by_cosh_rms(
    gamma: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 1e-7,
    *,
    variant: str = "paper",
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides updates by the root mean square of cosh, (3) or (4).

    Args:
      gamma: factor inside the cosine, not negative; number or schedule. 1 as in the paper; the code has 1.5.
      eps: added to the norm in (1), in units of the update; number or schedule. 1e-7 as in paper and code.
      variant: "paper", (3), or "official", (4), which does not normalise the update.
      routing: states batch axes of stacked leaves; None takes every leaf as one. Matrices that lie side by side in a
        leaf count as one.

    Raises:
      ValueError: a coefficient is negative, or the variant is unknown.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.scale_by_cosh_rms()
      >>> u = jnp.array([300.0, -400.0])
      >>> print(tx.update(u, tx.init(u))[0].round(2))
      [ 0.47 -0.63]
    """
    checks.check_non_negative("scale_by_cosh_rms", gamma=gamma, eps=eps)
    checks.check_choice("scale_by_cosh_rms", "variant", variant, ("paper", "official"))

    def init(params):
        leaves.check_leaves("scale_by_cosh_rms", params)
        scalars.batch_axes("scale_by_cosh_rms", params, routing)
        return ScaleByCoshRmsState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args

        def leaf(u, gamma, eps, stack):
            size = math.prod(n for axis, n in enumerate(u.shape) if axis not in stack)
            peak = scalars.nonzero(scalars.max_over(jnp.abs(u), stack))
            x = u / peak  # squares of the largest entry can neither overflow nor vanish
            x = x / scalars.nonzero(jnp.sqrt(scalars.sum_over(x * x, stack)) + eps / peak)  # (1)
            r = jnp.sqrt(1 + scalars.sum_over(jnp.square(jnp.sinh(gamma * x)), stack) / max(1, size))  # (2)
            return (u if variant == "official" else x) / (r + 1e-8)  # (3), (4)

        updates = leaves.lift(
            "scale_by_cosh_rms",
            leaf,
            updates,
            coefficients=[leaves.value_at(value, state.count) for value in (gamma, eps)],
            per_leaf=[scalars.batch_axes("scale_by_cosh_rms", updates, routing)],
        )
        return updates, ScaleByCoshRmsState(leaves.next_count(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
