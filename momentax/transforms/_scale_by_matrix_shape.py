"""Factors that make one learning rate do for matrices of all shapes.

    "kj"         u -> sqrt(max(1, fan_out / fan_in)) u        (1)
    "spectral"   u -> sqrt(fan_out / fan_in) u                (2)
    "moonlight"  u -> 0.2 sqrt(max(fan_out, fan_in)) u        (3)
    "none"       u -> u                                       (4)

fan_in, fan_out: inputs and outputs of a matrix, spatial axes of a convolution among the inputs. For an orthogonal u,
whose root mean square entry is 1 / sqrt(max(fan_out, fan_in)): (2) makes the largest change of the layer's output,
relative to its input in root mean square, 1 at every width; (1) is (2), but never shrinks; (3) makes the root mean
square entry 0.2, as that of a usual AdamW step, so that its learning rate and weight decay carry over.

Contract: transform.
Source: (1) Jordan et al., Muon, 2024; (2) Yang, Simon & Bernstein, A Spectral Condition for Feature Learning, arXiv
2310.17813; (3) Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982.
Departure: Muon's code reads (1) off the last two axes of a convolution kernel (out, in, height, width), and NAMO's code
(3) off the first two; "kj_last_axes" and "moonlight_first_axes" do that, for leaves in the layout of that code.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from momentax import checks, leaves
from momentax.matrices import SHAPE_SCALES, matrices, shape_factor
from momentax.routing import Routing
from momentax.typing import Count


class ScaleByMatrixShapeState(NamedTuple):
    """State of `scale_by_matrix_shape`.

    Attributes:
      count: steps taken, int32 scalar.
    """

    count: Count


def scale_by_matrix_shape(
    scale: str = "kj", *, routing: Routing | None = None
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each matrix by a factor of its shape.

    Args:
      scale: "kj" (1), "spectral" (2), "moonlight" (3), "none" (4), "kj_last_axes" or "moonlight_first_axes".
      routing: states the axes of matrices and stacks; None for the conventions of Flax.

    Raises:
      ValueError: an unknown rule, a leaf that is no matrix, or one whose axes cannot be told.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.scale_by_matrix_shape("kj")
      >>> w = {"kernel": jnp.ones((1, 4))}  # one input, four outputs
      >>> print(tx.update(w, tx.init(w))[0]["kernel"])
      [[2. 2. 2. 2.]]
    """
    checks.check_choice("scale_by_matrix_shape", "scale", scale, SHAPE_SCALES)

    def init(params):
        matrices("scale_by_matrix_shape", params, routing)
        return ScaleByMatrixShapeState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        read = matrices("scale_by_matrix_shape", updates, routing)

        def leaf(u, rule):
            return shape_factor(scale, u.shape, rule) * u  # (1)-(4)

        updates = leaves.lift("scale_by_matrix_shape", leaf, updates, per_leaf=[read.fused])
        return updates, ScaleByMatrixShapeState(leaves.next_count(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
