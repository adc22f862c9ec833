"""Give each gradient the norm that gradients usually have (AdaGN).

    q_t = ||g_t||                                                                           (1)
    P_t = gamma1 P_{t-1} + (1 - gamma1) q_t,    Q_t = gamma2 Q_{t-1} + (1 - gamma2) q_t^2    (2)
    k_t = [P_t / (1 - prod gamma1)] / (sqrt[Q_t / (1 - prod gamma2)] + eps)                 (3)
    u_t = k_t g_t / q_t                                                                     (4)

g: gradient, any shape; P, Q: averages of its norm and squared norm, one number a leaf, or one a matrix of a stack whose
`routing` states the batch axes; start at zero. As in Adam the norm k is about 1, smaller where norms vary, and it does
not change when all gradients are scaled alike.

Contract: transform.
Source: Huang et al., Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam, ICML 2025, arXiv 2502.17055;
official code TianjinYellow/StableSPAM.
A zero gradient stays zero, and P and Q decay. Norms are summed as squares in the leaf's dtype, float32 at least, where
entries above 1e19 overflow. A non-finite norm enters P and Q and stays; `optax.apply_if_finite` keeps it out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.routing import Routing
from momentax.typing import Count, ScalarOrSchedule


class ScaleToAverageNormState(NamedTuple):
    """State of `scale_to_average_norm`.

    Attributes:
      count: steps taken, int32 scalar.
      norm_average: P of all leaves, in one vector, starts at zero.
      norm_square_average: Q of all leaves, in one vector, starts at zero.
      norm_weight: 1 - prod gamma1, scalar, starts at zero; None unless debias=True.
      norm_square_weight: 1 - prod gamma2, scalar, starts at zero; None unless debias=True.
    """

    count: Count
    norm_average: jax.Array
    norm_square_average: jax.Array
    norm_weight: jax.Array | None
    norm_square_weight: jax.Array | None


def scale_to_average_norm(
    gamma1: ScalarOrSchedule = 0.7,
    gamma2: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    *,
    debias: bool | Callable[[Any], Any] = True,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scales each leaf to the average of its norm, in units of the norm's root mean square.

    Args:
      gamma1: decay of the average norm, in [0, 1); number or schedule. 0.7 as in the code for 4-bit training, which
        takes 0.85 for bfloat16.
      gamma2: decay of the average squared norm, in [0, 1); number or schedule. 0.9; 0.99999 for bfloat16.
      eps: added to the root, in units of the norm; number or schedule. 1e-8 as in the code.
      debias: True divides by the weights of the averages; a function of the number of steps already taken gives the age
        tau after which a source believes them to be. False does not divide.
      routing: states batch axes of stacked leaves; None takes every leaf as one.

    Raises:
      ValueError: a decay is a number outside [0, 1), `eps` is negative, or the gradients do not match the state.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.scale_to_average_norm()
      >>> updates, _ = tx.update(jnp.array([300.0, -400.0]), tx.init(jnp.zeros(2)))
      >>> print(jnp.sqrt(jnp.sum(updates**2)).round(4))
      1.0
    """
    checks.check_fraction("scale_to_average_norm", gamma1=gamma1, gamma2=gamma2)
    checks.check_non_negative("scale_to_average_norm", eps=eps)
    checks.check_debias("scale_to_average_norm", debias)

    def init(params):
        leaves.check_leaves("scale_to_average_norm", params)
        shapes = scalars.shapes(params, scalars.batch_axes("scale_to_average_norm", params, routing))
        size = scalars.vector_size(shapes)
        weights = [jnp.zeros([]) if debias is True else None for _ in range(2)]
        return ScaleToAverageNormState(jnp.zeros([], jnp.int32), jnp.zeros([size]), jnp.zeros([size]), *weights)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if not jax.tree.leaves(updates):
            return updates, state
        leaves.leaves_like("scale_to_average_norm", updates, params)
        stacks = scalars.batch_axes("scale_to_average_norm", updates, routing)
        shapes = scalars.shapes(updates, stacks)
        decay1, decay2, floor = (leaves.value_at(value, state.count) for value in (gamma1, gamma2, eps))
        weight1, divisor1 = scalars.debiasing(debias, state.count, state.norm_weight, decay1)
        weight2, divisor2 = scalars.debiasing(debias, state.count, state.norm_square_weight, decay2)
        squares = leaves.each(
            "scale_to_average_norm", lambda g, stack: scalars.sum_over(g * g, stack), updates, per_leaf=[stacks]
        )
        norms = [jnp.sqrt(square) for square in squares]  # (1)
        P = scalars.unpack("scale_to_average_norm", state.norm_average, shapes)
        Q = scalars.unpack("scale_to_average_norm", state.norm_square_average, shapes)
        P = [scalars.average(mean, q, decay1) for mean, q in zip(P, norms, strict=True)]  # (2)
        Q = [scalars.average(mean, qq, decay2) for mean, qq in zip(Q, squares, strict=True)]
        factors = [
            p / divisor1 / scalars.nonzero(jnp.sqrt(qq / divisor2) + floor) / scalars.nonzero(q).astype(p.dtype)  # (3)
            for p, qq, q in zip(P, Q, norms, strict=True)
        ]
        updates = leaves.lift("scale_to_average_norm", lambda g, k: k * g, updates, per_leaf=[factors])  # (4)
        count = leaves.next_count(state.count)
        return updates, ScaleToAverageNormState(count, scalars.pack(P), scalars.pack(Q), weight1, weight2)

    return optax.GradientTransformationExtraArgs(init, update)
