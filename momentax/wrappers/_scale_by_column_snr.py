"""Steps as long as the gradients of an input (or an output) agree with one another, along an orthogonalised momentum.

    M_t, N_t as in `momentax.scale_by_norm_snr`                                  (1)
    v_tj    = b2 v_{t-1,j} + (1 - b2) |G_tj|^2                                   (2)
    d_j     = |N_tj| / (sqrt(v_tj) + eps)                                        (3)
    d_j    <- clip(d_j, c mean(d), mean(d) / c)                                  (4)
    alpha_j = sqrt(1 - prod b2) / (1 - prod b1) d_j                              (5)
    u_tj    = alpha_j (s O_tj + lam w_j),   O_t = inner(N_t)                     (6)
    w_j    <- max(0, 1 - lam min(eta alpha_j, 1)) w_j - min(eta alpha_j s, 1) O_tj   (7)  with learning_rate

G_j, N_j, O_j, w_j: what belongs to input j of a matrix (in, out), the j-th row of a Flax kernel; with axis="output" to
output j. Each matrix of a stack is by itself; spatial axes of a convolution are inputs. v: `nu`, starts at zero; c:
`clamp`, which keeps the condition number of alpha O within that of O over c^2; the rest as in `scale_by_norm_snr`.
Where mean(d), taken over the d_j that are not NaN, is zero or not finite, (4) does nothing.

Contract: wrapper; with `learning_rate`, which the bounds of (7) contain, a terminal that ends the chain.
Source: Zhang, Liu & Schaeffer, Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum, arXiv
2602.17080 (NAMO-D); (7) is the official code minxin-zhg/namo, whose columns are inputs, although the paper speaks of
neurons: axis="output".
Departure: as in `scale_by_norm_snr`.
An input without gradients has d = 0, which (4) lifts to c mean(d): its weights decay. Non-finite gradients enter the
averages of their matrix and stay.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks
from momentax.routing import Routing
from momentax.typing import Count, Mask, ScalarOrSchedule, Transformation
from momentax.wrappers._scale_by_norm_snr import adapt_to_noise


class ScaleByColumnSnrState(NamedTuple):
    """State of `scale_by_column_snr`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: average gradient M, shaped like the parameters, starts at zero.
      mu_weight: 1 - prod b1, scalar, starts at zero.
      nu: average squared norms v, one vector with an entry for each input of each matrix, starts at zero.
      nu_weight: 1 - prod b2, scalar, starts at zero.
      inner: state of the inner transformation.
    """

    count: Count
    mu: optax.Updates
    mu_weight: jax.Array
    nu: jax.Array
    nu_weight: jax.Array
    inner: optax.OptState


def scale_by_column_snr(
    inner: Transformation | None = None,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    clamp: ScalarOrSchedule | None = 0.75,
    *,
    axis: str = "input",
    nesterov: bool = True,
    scale: str = "moonlight",
    rms: ScalarOrSchedule = 0.2,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    learning_rate: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Averages gradients, hands the average to `inner`, and scales each input of what comes back by (5).

    Args:
      inner: transformation from N to the direction O; None is `momentax.orthogonalize(routing=routing)`.
      b1: decay of the average gradient, in [0, 1); number or schedule. 0.95 as in the code.
      b2: decay of the average squared norms, in [0, 1); number or schedule. 0.99 as in the code.
      eps: added to the root, in units of the norm; number or schedule. 1e-8 as in the code.
      clamp: c in (4), in [0, 1]; number or schedule. 0.75 as in the code; 1 makes all inputs of a matrix alike, and
        None leaves them alone.
      axis: "input" or "output": which of the two has factors of its own.
      nesterov: look one step ahead.
      scale: factor s; see `momentax.scale_by_matrix_shape`.
      rms: root mean square entry that scale="moonlight" gives to orthogonal directions; number or schedule. 0.2.
      weight_decay: lam, per unit of learning rate; number or schedule; None is off.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters; None all.
      learning_rate: eta in (7), number or schedule, which makes this a terminal: its updates are added to the
        parameters as they are. None gives the direction (6).
      mu_dtype: dtype of M; None means the leaf's own, float32 for half precision.
      routing: states the axes of matrices and stacks; None for the conventions of Flax.

    Raises:
      ValueError: a bad coefficient or choice, missing `params` where weights decay, a leaf that is no matrix, or
        gradients that do not match the state.
      TypeError: `inner` is no transformation, or a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax, optax
      >>> tx = momentax.scale_by_column_snr(optax.identity(), clamp=None, nesterov=False, scale="none")
      >>> w = {"kernel": jnp.array([[3.0, 4.0], [0.6, 0.8]])}
      >>> u, _ = tx.update(w, tx.init(w))  # one step: every ratio is 1, and N is 0.05 w
      >>> print(u["kernel"])
      [[0.15 0.2 ]
       [0.03 0.04]]
    """
    checks.check_interval("scale_by_column_snr", clamp=clamp)
    checks.check_choice("scale_by_column_snr", "axis", axis, ("input", "output"))

    def columns(rule):
        return rule.in_axes if axis == "input" else rule.out_axes

    def clip(d, c, rule):
        if c is None:
            return d
        mean = jnp.nanmean(d, axis=columns(rule), keepdims=True)
        usable = jnp.isfinite(mean) & (mean > 0)
        return jnp.clip(d, jnp.where(usable, c * mean, 0.0), jnp.where(usable, mean / c, jnp.inf))  # (4)

    return adapt_to_noise(
        "scale_by_column_snr",
        ScaleByColumnSnrState,
        inner,
        (b1, b2, eps, clamp, weight_decay, learning_rate, rms),
        kept=lambda rule: (*rule.batch_axes, *columns(rule)),
        ratio=clip,
        shrink=lambda decay: jnp.minimum(decay, 1.0),
        nesterov=nesterov,
        scale=scale,
        weight_decay_mask=weight_decay_mask,
        mu_dtype=mu_dtype,
        routing=routing,
    )
