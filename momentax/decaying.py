"""What the forms of weight decay share: they see each weight beside its direction, and remember nothing."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from momentax import leaves
from momentax.typing import Count, Mask, ScalarOrSchedule


class DecayState(NamedTuple):
    """State of a weight decay.

    Attributes:
      count: steps taken, int32 scalar.
    """

    count: Count


def decaying(
    function: str,
    leaf: Callable[..., Any],
    coefficients: Sequence[ScalarOrSchedule],
    mask: Mask | None,
    *,
    real: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The transformation `u -> leaf(u, w, *coefficients, decays)`.

    Args:
      function: name of the public function, for errors.
      leaf: from a direction, its weight, the coefficients at this step, and whether the mask lets the weight decay.
      coefficients: numbers or schedules.
      mask: which leaves decay.
      real: whether complex leaves are refused.
    """

    def init(params):
        leaves.check_leaves(function, params, real=real)
        return DecayState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        params = leaves.require_params(function, params)
        updates = leaves.lift(
            function,
            leaf,
            updates,
            reads=[params],
            coefficients=[leaves.value_at(value, state.count) for value in coefficients],
            per_leaf=[leaves.mask_leaves(function, mask, params)],
            real=real,
        )
        return updates, DecayState(leaves.next_count(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
