"""Schedules that several sources hide in their step counters."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from momentax.leaves import value_at
from momentax.typing import ScalarOrSchedule


def due(t: Any, every: int) -> Any:
    """Whether something with this period happens at step t; steps are counted from 1."""
    return (t > 0) & (t % every == 0)


def periodic(every: int | None, then: ScalarOrSchedule, otherwise: ScalarOrSchedule) -> ScalarOrSchedule:
    """`then` in the steps 0, every, 2 every, ..., and `otherwise` between them; always `otherwise` with every=None.

    >>> [float(periodic(3, 1.0, 0.5)(jnp.asarray(count))) for count in range(5)]
    [1.0, 0.5, 0.5, 1.0, 0.5]
    """
    if every is None or every == 1:
        return otherwise if every is None else then
    return lambda count: jnp.where(count % every == 0, value_at(then, count), value_at(otherwise, count))


def apart(every: int) -> Callable[[Any, Any, Any], Any]:
    """The predicate of resets that leave `every` steps between them, the first ones included.

    >>> [bool(apart(2)(count, None, None)) for count in range(5)]
    [False, False, True, False, True]
    """
    return lambda count, updates, params: due(count, every)


def counter_of_stable_spam(every: int | None, *, set_back: bool) -> Callable[[Any], Any]:
    """Count -> tau: the one counter by which Stable-SPAM's code debiases, raised in every step and set to 1 in resets.

    Args:
      every: steps between resets, or None.
      set_back: whether tau is read after the reset step has set it back (the moments) or before (the filters).

    >>> [int(counter_of_stable_spam(3, set_back=True)(jnp.asarray(count))) for count in range(7)]
    [1, 2, 1, 2, 3, 1, 2]
    >>> [int(counter_of_stable_spam(3, set_back=False)(jnp.asarray(count))) for count in range(7)]
    [1, 2, 3, 2, 3, 4, 2]
    """

    def tau(count):
        t = count + 1
        if every is None:
            return t
        if set_back:
            return jnp.where(t < every, t, 1 + t % every)
        return jnp.where(t <= every, t, 2 + (t - 1) % every)

    return tau


def cosine_shrunk(
    value: ScalarOrSchedule, total_steps: int | None, floor: float, *, periodic: bool = False
) -> ScalarOrSchedule:
    """`value` times a cosine that falls from 1 to `floor` over `total_steps` and stays there, or rises again.

        c_t = floor + (1 - floor) (1 + cos(pi t / (total_steps + 1))) / 2,    t counted from 1

    >>> schedule = cosine_shrunk(0.9, 3, 0.5)
    >>> [round(float(schedule(jnp.asarray(count))), 4) for count in (0, 2, 3, 100)]
    [0.8341, 0.5159, 0.45, 0.45]
    """
    if total_steps is None:
        return value

    def schedule(count: jax.Array) -> Any:
        t = jnp.asarray(count + 1, jnp.result_type(float))
        angle = math.pi * (t if periodic else jnp.minimum(t, total_steps + 1)) / (total_steps + 1)
        return value_at(value, count) * (floor + (1 - floor) * (1 + jnp.cos(angle)) / 2)

    return schedule
