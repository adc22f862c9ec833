"""What the factories of convex functions refuse: a function is the same at every step, so nothing is scheduled."""

from typing import Any

import numpy as np


def number(function: str, name: str, value: Any, *, above: float, inclusive: bool = False) -> Any:
    """`value` as a Python number, in range; an array of rank 0 passes untouched.

    Raises:
      TypeError: it is no number.
      ValueError: it is not finite, or out of range.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if not isinstance(value, (bool, str)) and getattr(value, "shape", None) == ():
            return value
        raise TypeError(f"{function}: `{name}` must be a number; got {value!r}.")
    in_range = value >= above if inclusive else value > above
    if not in_range or value == float("inf"):
        needed = "not be negative" if inclusive else f"be above {above:g}"
        raise ValueError(f"{function}: `{name}` must {needed}, and finite; got {value!r}.")
    return value


def whole(function: str, name: str, value: Any) -> int:
    """`value`, refused with a `ValueError` unless it is an integer of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{function}: `{name}` must be an integer, 1 or more; got {value!r}.")
    return int(value)
