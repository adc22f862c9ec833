"""One-line aliases used in the signatures of the whole library."""

from collections.abc import Callable
from typing import Any

import jax
import optax

Count = Any  # an int32 scalar; type checkers would hold jax.Array against the method `count` of tuples
Params = optax.Params
Updates = optax.Updates
Scalar = float | jax.Array
Schedule = Callable[[Any], Any]
ScalarOrSchedule = float | jax.Array | Schedule
Mask = Any | Callable[[optax.Params], Any]
Transformation = optax.GradientTransformation | optax.GradientTransformationExtraArgs
