"""What a factory may refuse before any array exists, in one sentence each.

`optax.inject_hyperparams` re-runs factories under trace, so only plain Python numbers are judged: an array
or a schedule passes through untouched.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_choice(function: str, argument: str, value: Any, choices: Collection[Any]) -> None:
    """Raises `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{function}: `{argument}` must be one of {listed}; got {value!r}.")


def check_fraction(function: str, **arguments: Any) -> None:
    """Raises `ValueError` unless each Python number lies in [0, 1): a decay of 1 would never move."""
    for argument, value in arguments.items():
        if _is_number(function, argument, value) and not 0 <= value < 1:
            raise ValueError(f"{function}: `{argument}` must lie in [0, 1); got {value!r}.")


def check_interval(function: str, **arguments: Any) -> None:
    """Raises `ValueError` unless each Python number lies in [0, 1], both ends included."""
    for argument, value in arguments.items():
        if _is_number(function, argument, value) and not 0 <= value <= 1:
            raise ValueError(f"{function}: `{argument}` must lie in [0, 1]; got {value!r}.")


def check_non_negative(function: str, **arguments: Any) -> None:
    """Raises `ValueError` for a negative or NaN Python number; None, arrays and schedules pass."""
    for argument, value in arguments.items():
        if _is_number(function, argument, value) and not value >= 0:
            raise ValueError(f"{function}: `{argument}` must not be negative; got {value!r}.")


def check_positive(function: str, **arguments: Any) -> None:
    """Raises `ValueError` for a Python number that is not above zero; None, arrays and schedules pass."""
    for argument, value in arguments.items():
        if _is_number(function, argument, value) and not value > 0:
            raise ValueError(f"{function}: `{argument}` must be above zero; got {value!r}.")


def check_transformation(function: str, argument: str, value: Any) -> None:
    """Raises `TypeError` unless `value` looks like an optax transformation."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(
            f"{function}: `{argument}` must be an optax.GradientTransformation, for example "
            f"momentax.heavy_ball(); got {value!r}."
        )


def check_learning_rate(function: str, learning_rate: Any) -> None:
    """Raises unless the learning rate is a number that is not negative, an array or a schedule."""
    if learning_rate is None:
        raise ValueError(f"{function}: `learning_rate` must be a number or a schedule; got None.")
    check_non_negative(function, learning_rate=learning_rate)


def _is_number(function: str, argument: str, value: Any) -> bool:
    """Whether a coefficient is a Python number, and so can be judged; what can never be one is refused."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return True
    if value is None or callable(value) or np.ndim(value) == 0 and hasattr(value, "dtype"):
        return False
    raise TypeError(f"{function}: `{argument}` must be a number or a schedule of the step count; got {value!r}.")


def check_steps(function: str, **arguments: Any) -> None:
    """Raises `ValueError` unless each value is None or a Python integer, 1 or more: a static number of steps."""
    for argument, value in arguments.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
            raise ValueError(
                f"{function}: `{argument}` must be a number of steps, 1 or more, or None; got {value!r}. Under "
                f"optax.inject_hyperparams name it in static_args=('{argument}',)."
            )


def check_dtype(function: str, **dtypes: Any) -> None:
    """Raises unless each value is None or a real floating dtype."""
    for argument, dtype in dtypes.items():
        if dtype is None:
            continue
        if isinstance(dtype, jax.Array):
            raise TypeError(
                f"{function}: `{argument}` must be a dtype; got an array. optax.inject_hyperparams takes a dtype for a "
                f"schedule: name it there in static_args=('{argument}',)."
            )
        try:
            floating = jnp.issubdtype(dtype, jnp.floating)
        except TypeError:  # no dtype at all
            floating = False
        if not floating:
            raise ValueError(f"{function}: `{argument}` must be a real floating dtype; got {dtype!r}.")


def check_debias(function: str, debias: Any) -> None:
    """Raises `TypeError` unless `debias` is True, False or a function of the step count."""
    if not (isinstance(debias, bool) or callable(debias)):
        raise TypeError(f"{function}: `debias` must be True, False or a function of the step count; got {debias!r}.")


def check_period(function: str, argument: str, every: int | None, warmup: int | None) -> None:
    """Raises `ValueError` unless both are numbers of steps or None, and the warm-up ends before the period does."""
    check_steps(function, **{argument: every, "warmup": warmup})
    if every is not None and warmup is not None and every < warmup:
        raise ValueError(
            f"{function}: `{argument}` must not be below `warmup`, or the step size never recovers from a reset; got "
            f"{argument}={every}, warmup={warmup}."
        )
