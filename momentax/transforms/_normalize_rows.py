"""Divide each output row of a matrix by its usual size (the second half of NorMuon).

    v_r <- b2 v_r + (1 - b2) mean_i O_ri^2        (1)  over the inputs i of output r
    Y_r  = O_r / (sqrt(v_r) + eps)                (2)
    U    = Y |O| / |Y|                            (3)  rescale="norm": the matrix keeps its Frobenius norm
    U    = 0.2 sqrt(m n) Y / |Y|                  (4)  rescale="rms": its root mean square entry is 0.2

O: incoming update, read as matrices of m outputs and n inputs by `routing`, each of a stack alone; v: one number a row,
starts at zero, not debiased: (3) and (4) do away with a common factor. An orthogonal O has rows of very different sizes
where m > n; (2) gives every neuron about the same step.

Contract: transform.
Source: Li et al., NorMuon: Making Muon more efficient and scalable, arXiv 2510.05491, whose algorithm has (4); official
code zichongli5/NorMuon (b2, eps), which has (3).
Departure: rows of a convolution are its output channels, where the code takes the last axis of (out, in, height, width)
for the inputs. The code adds eps to |Y| in (3), too.
A dead row or matrix stays zero. A matrix with an entry that is not finite becomes NaN, and its v stays so; the others
do not notice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.matrices import Matrices, fans, matrices
from momentax.routing import Routing, Rule
from momentax.typing import Count, ScalarOrSchedule


class NormalizeRowsState(NamedTuple):
    """State of `normalize_rows`.

    Attributes:
      count: steps taken, int32 scalar.
      nu: average squares v of all rows, in one vector, starts at zero.
    """

    count: Count
    nu: jax.Array


def normalize_rows(
    b2: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-10,
    *,
    rescale: str = "norm",
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Evens out the rows of matrices by the running average of their squares.

    Args:
      b2: decay of v, in [0, 1); number or schedule. 0.95 as in the code.
      eps: added to the root in (2), in units of the update; number or schedule. 1e-10 as in the code.
      rescale: "norm" (3) or "rms" (4). After (4) no factor of the shape is needed.
      routing: states the axes of matrices and stacks; None for the conventions of Flax.

    Raises:
      ValueError: a number out of range, an unknown choice, a leaf that is no matrix, or one whose axes cannot be told.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.normalize_rows()
      >>> w = {"kernel": jnp.array([[1.0, 7.0], [1.0, -7.0]])}  # (in, out): two outputs, the second one large
      >>> print(tx.update(w, tx.init(w))[0]["kernel"].round(4))  # norm 10
      [[ 5.  5.]
       [ 5. -5.]]
    """
    checks.check_fraction("normalize_rows", b2=b2)
    checks.check_non_negative("normalize_rows", eps=eps)
    checks.check_choice("normalize_rows", "rescale", rescale, ("norm", "rms"))

    def init(params):
        read = matrices("normalize_rows", params, routing)
        shapes = scalars.shapes(read.apart(params), _rows(read))
        return NormalizeRowsState(jnp.zeros([], jnp.int32), jnp.zeros([scalars.vector_size(shapes)]))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if not jax.tree.leaves(updates):
            return updates, state
        leaves.leaves_like("normalize_rows", updates, params)
        read = matrices("normalize_rows", updates, routing)
        updates, rows = read.apart(updates), _rows(read)
        decay, floor = (leaves.value_at(value, state.count) for value in (b2, eps))

        def mean_square(o, row, rule):
            return scalars.sum_over(o * o, row) / fans(o.shape, rule)[0]

        means = leaves.each("normalize_rows", mean_square, updates, per_leaf=[rows, read.rules])
        nu = scalars.unpack("normalize_rows", state.nu, scalars.shapes(updates, rows))
        nu = [scalars.average(v, mean, decay) for v, mean in zip(nu, means, strict=True)]  # (1)

        def leaf(o, floor, v, mean, rule):
            divisor = scalars.nonzero(jnp.sqrt(v) + floor)  # (2)
            size, new = (_root_mean(x, rule) for x in (mean, mean / (divisor * divisor)))
            return (size if rescale == "norm" else 0.2) / scalars.nonzero(new) / divisor * o  # (3), (4)

        updates = leaves.lift("normalize_rows", leaf, updates, coefficients=[floor], per_leaf=[nu, means, read.rules])
        packed = scalars.pack(nu)
        return read.together(updates), NormalizeRowsState(leaves.next_count(state.count), packed)

    return optax.GradientTransformationExtraArgs(init, update)


def _rows(read: Matrices) -> list[tuple[int, ...]]:
    """For each leaf the axes that tell its rows apart."""
    return [(*rule.batch_axes, *rule.out_axes) for rule in read.rules]


def _root_mean(squares: jax.Array, rule: Rule) -> jax.Array:
    """The root mean square of a matrix from the mean squares of its rows: nothing of the size of a leaf is read."""
    return jnp.sqrt(jnp.mean(squares, axis=rule.out_axes, keepdims=True))
