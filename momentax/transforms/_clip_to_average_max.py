"""Clip entries of a gradient that exceed the usual largest one (AdaClip).

    M_t = gamma3 M_{t-1} + (1 - gamma3) max|g_t|                 (1)
    h_t = M_t / (1 - prod gamma3)                                (2)
    where |g_t| > h_t:  g_t <- g_t h_t / max|g_t|                (3)  scaled by the largest entry, not cut at h

g: gradient, any shape; M: average of its largest absolute entry, one number a leaf, or one a matrix of a stack whose
`routing` states the batch axes; starts at zero. No entry leaves larger than h.

Contract: transform.
Source: Huang et al., Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam, ICML 2025, arXiv 2502.17055;
official code TianjinYellow/StableSPAM.
A zero gradient passes. A non-finite one enters M and stays; `optax.apply_if_finite` keeps it out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.routing import Routing
from momentax.typing import Count, ScalarOrSchedule


class ClipToAverageMaxState(NamedTuple):
    """State of `clip_to_average_max`.

    Attributes:
      count: steps taken, int32 scalar.
      max_average: M of all leaves, in one vector, starts at zero.
      max_weight: 1 - prod gamma3, scalar, starts at zero; None unless debias=True.
    """

    count: Count
    max_average: jax.Array
    max_weight: jax.Array | None


def clip_to_average_max(
    gamma3: ScalarOrSchedule = 0.999,
    *,
    debias: bool | Callable[[Any], Any] = True,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scales down entries above the running average of the largest absolute entry of their leaf.

    Args:
      gamma3: decay of M, in [0, 1); number or schedule. 0.999 as in the code.
      debias: True divides by the weight that M has; a function of the number of steps already taken gives the age tau
        after which a source believes it to be. False does not divide: early gradients are then clipped hard.
      routing: states batch axes of stacked leaves; None takes every leaf as one.

    Raises:
      ValueError: `gamma3` is a number outside [0, 1), or the gradients do not match the state.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.clip_to_average_max(0.5)
      >>> state = tx.init(jnp.zeros(2))
      >>> _, state = tx.update(jnp.array([1.0, 0.5]), state)
      >>> print(tx.update(jnp.array([-7.0, 2.0]), state)[0])  # h = (0.25 * 1 + 0.5 * 7) / 0.75 = 5
      [-5.  2.]
    """
    checks.check_fraction("clip_to_average_max", gamma3=gamma3)
    checks.check_debias("clip_to_average_max", debias)

    def init(params):
        leaves.check_leaves("clip_to_average_max", params)
        shapes = scalars.shapes(params, scalars.batch_axes("clip_to_average_max", params, routing))
        return ClipToAverageMaxState(
            count=jnp.zeros([], jnp.int32),
            max_average=jnp.zeros([scalars.vector_size(shapes)]),
            max_weight=jnp.zeros([]) if debias is True else None,
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if not jax.tree.leaves(updates):
            return updates, state
        leaves.leaves_like("clip_to_average_max", updates, params)
        stacks = scalars.batch_axes("clip_to_average_max", updates, routing)
        decay = leaves.value_at(gamma3, state.count)
        weight, divisor = scalars.debiasing(debias, state.count, state.max_weight, decay)
        largest = leaves.each(
            "clip_to_average_max", lambda g, stack: scalars.max_over(jnp.abs(g), stack), updates, per_leaf=[stacks]
        )
        averages = scalars.unpack("clip_to_average_max", state.max_average, scalars.shapes(updates, stacks))
        averages = [scalars.average(M, top, decay) for M, top in zip(averages, largest, strict=True)]  # (1)
        bounds = [M / divisor for M in averages]  # (2)

        def leaf(g, top, bound):
            return jnp.where(jnp.abs(g) > bound, bound / scalars.nonzero(top) * g, g)  # (3)

        updates = leaves.lift("clip_to_average_max", leaf, updates, per_leaf=[largest, bounds])
        count = leaves.next_count(state.count)
        return updates, ClipToAverageMaxState(count, scalars.pack(averages), weight)

    return optax.GradientTransformationExtraArgs(init, update)
