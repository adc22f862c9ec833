"""Steps as long as the gradients of a matrix agree with one another, along an orthogonalised momentum.

    M_t     = b1 M_{t-1} + (1 - b1) G_t                                          (1)
    N_t     = b1 M_t + (1 - b1) G_t                                              (2)  M_t with nesterov=False
    v_t     = b2 v_{t-1} + (1 - b2) |G_t|_F^2                                    (3)
    alpha_t = sqrt(1 - prod b2) / (1 - prod b1) |N_t|_F / (sqrt(v_t) + eps)      (4)
    u_t     = alpha_t (s O_t + lam w),   O_t = inner(N_t)                        (5)
    w      <- (1 - lam min(eta alpha_t, 1)) w - min(eta alpha_t s, 1) O_t        (6)  with learning_rate

G: gradient, w: parameter, each matrix (in, out) of a stack alone; M: average `mu`, same shape; v: one number a matrix,
`nu`; both start at zero. s: factor of the shape, `momentax.scale_by_matrix_shape`; lam: `weight_decay`, per unit of
learning rate. alpha compares the length of the average gradient with the average length: without Nesterov it is 1
while the gradient stays the same, about sqrt((1 - b1) / (1 + b1)) where gradients are noise, and never above 1.7 with
the default decays. Decay slows down with the step.

Contract: wrapper; with `learning_rate`, which the bounds of (6) contain, a terminal that ends the chain.
Source: Zhang, Liu & Schaeffer, Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum, arXiv
2602.17080; (6) is the official code minxin-zhg/namo, where eps stands outside the root as in (4), its comments
notwithstanding.
Departure: the products of decays are kept as averages of ones, exact under schedules, and so the code's 1e-12 beside
1 - b1^t is left out. s counts the spatial axes of a convolution as inputs; scale="moonlight_first_axes" is the code's.
A zero gradient at the first step gives no update and no decay. Non-finite gradients enter the averages of their matrix
and stay.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.matrices import SHAPE_SCALES, matrices, shape_factor
from momentax.routing import Routing, Rule
from momentax.transforms import orthogonalize
from momentax.typing import Count, Mask, ScalarOrSchedule, Transformation


class ScaleByNormSnrState(NamedTuple):
    """State of `scale_by_norm_snr`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: average gradient M, shaped like the parameters, starts at zero.
      mu_weight: 1 - prod b1, scalar, starts at zero.
      nu: average squared norm v, one vector with an entry a matrix, starts at zero.
      nu_weight: 1 - prod b2, scalar, starts at zero.
      inner: state of the inner transformation.
    """

    count: Count
    mu: optax.Updates
    mu_weight: jax.Array
    nu: jax.Array
    nu_weight: jax.Array
    inner: optax.OptState


def scale_by_norm_snr(
    inner: Transformation | None = None,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    *,
    nesterov: bool = True,
    scale: str = "moonlight",
    rms: ScalarOrSchedule = 0.2,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    learning_rate: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Averages gradients, hands the average to `inner`, and scales what comes back by (4).

    Args:
      inner: transformation from N to the direction O; None is `momentax.orthogonalize(routing=routing)`.
      b1: decay of the average gradient, in [0, 1); number or schedule. 0.95 as in the code.
      b2: decay of the average squared norm, in [0, 1); number or schedule. 0.99 as in the code.
      eps: added to the root, in units of the norm; number or schedule. 1e-8 as in the code.
      nesterov: look one step ahead, (2).
      scale: factor s; see `momentax.scale_by_matrix_shape`.
      rms: root mean square entry that scale="moonlight" gives to orthogonal directions; number or schedule. 0.2.
      weight_decay: lam, per unit of learning rate; number or schedule; None is off.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters; None all.
      learning_rate: eta in (6), number or schedule, which makes this a terminal: its updates are added to the
        parameters as they are. None gives the direction (5).
      mu_dtype: dtype of M; None means the leaf's own, float32 for half precision.
      routing: states the axes of matrices and stacks; None for the conventions of Flax.

    Raises:
      ValueError: a bad coefficient or scale, missing `params` where weights decay, a leaf that is no matrix, or
        gradients that do not match the state.
      TypeError: `inner` is no transformation, or a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.scale_by_norm_snr(nesterov=False, scale="none")
      >>> w = {"kernel": jnp.array([[3.0, 0.0], [0.0, 3.0]])}
      >>> state = tx.init(w)
      >>> agree, state = tx.update(w, state)
      >>> turned, state = tx.update({"kernel": -w["kernel"]}, state)
      >>> print(jnp.abs(turned["kernel"][0, 0]) < 0.1 * agree["kernel"][0, 0])
      True
    """

    def ratio(d, bound, rule):
        del bound, rule
        return d

    return adapt_to_noise(
        "scale_by_norm_snr",
        ScaleByNormSnrState,
        inner,
        (b1, b2, eps, None, weight_decay, learning_rate, rms),
        kept=lambda rule: rule.batch_axes,
        ratio=ratio,
        shrink=lambda decay: decay,
        nesterov=nesterov,
        scale=scale,
        weight_decay_mask=weight_decay_mask,
        mu_dtype=mu_dtype,
        routing=routing,
    )


def adapt_to_noise(
    function: str,
    make_state: Callable[..., Any],
    inner: Transformation | None,
    coefficients: tuple[ScalarOrSchedule | None, ...],
    *,
    kept: Callable[[Rule], tuple[int, ...]],
    ratio: Callable[[jax.Array, Any, Rule], jax.Array],
    shrink: Callable[[jax.Array], jax.Array],
    nesterov: bool,
    scale: str,
    weight_decay_mask: Mask | None,
    mu_dtype: Any,
    routing: Routing | None,
) -> optax.GradientTransformationExtraArgs:
    """What NAMO and NAMO-D share.

    Args:
      function: name of the public function, for errors.
      make_state: class of its state.
      inner: as the user gave it.
      coefficients: b1, b2, eps, bound of the ratios, weight decay, learning rate, rms.
      kept: axes of a leaf along which (3) and (4) are numbers of their own.
      ratio: from |N| / (sqrt(v) + eps), the bound and the rule of the leaf to what takes its place.
      shrink: what becomes of lam min(eta alpha, 1) in (6).
      nesterov, scale, weight_decay_mask, mu_dtype, routing: as the user gave them.
    """
    b1, b2, eps, _, weight_decay, learning_rate, rms = coefficients
    checks.check_fraction(function, b1=b1, b2=b2)
    checks.check_non_negative(function, eps=eps, rms=rms, weight_decay=weight_decay, learning_rate=learning_rate)
    checks.check_choice(function, "scale", scale, SHAPE_SCALES)
    inner = orthogonalize(routing=routing) if inner is None else inner
    checks.check_transformation(function, "inner", inner)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        read = matrices(function, params, routing)
        shapes = scalars.shapes(read.apart(params), list(map(kept, read.rules)))
        return make_state(
            count=jnp.zeros([], jnp.int32),
            mu=leaves.zeros_like(function, params, mu_dtype),
            mu_weight=jnp.zeros([]),
            nu=jnp.zeros([scalars.vector_size(shapes)]),
            nu_weight=jnp.zeros([]),
            inner=inner.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        if not jax.tree.leaves(updates):
            return updates, state
        decays = [False] * len(jax.tree.leaves(updates))
        if weight_decay is not None:
            params = leaves.require_params(function, params)
            decays = leaves.mask_leaves(function, weight_decay_mask, params)
        decay1, decay2, floor, bound, lam, eta, size = (leaves.value_at(c, state.count) for c in coefficients)
        mu_weight = scalars.average(state.mu_weight, 1.0, decay1)
        nu_weight = scalars.average(state.nu_weight, 1.0, decay2)
        correction = jnp.sqrt(nu_weight) / scalars.nonzero(mu_weight)

        def momentum(g, m, decay1):
            m = decay1 * m + (1 - decay1) * g  # (1)
            return (decay1 * m + (1 - decay1) * g if nesterov else m), m  # (2)

        ahead, mu = leaves.lift(function, momentum, updates, state=[state.mu], coefficients=[decay1])
        directions, inner_state = inner.update(ahead, state.inner, params, **extra_args)

        read = matrices(function, updates, routing)
        axes = list(map(kept, read.rules))
        shapes = map(jnp.shape, jax.tree.leaves(updates))
        factors = [shape_factor(scale, shape, rule, size) for shape, rule in zip(shapes, read.fused, strict=True)]
        g, n, o, w = map(read.apart, (updates, ahead, directions, params if any(decays) else None))
        averages = scalars.unpack(function, state.nu, scalars.shapes(g, axes))

        def compare(g, n, decay2, floor, bound, correction, v, axes, rule):
            largest = float(jnp.finfo(g.dtype).max)  # squares of a spike may overflow, and would stay
            v = decay2 * v + (1 - decay2) * jnp.minimum(scalars.sum_over(g * g, axes), largest)  # (3)
            d = jnp.sqrt(jnp.minimum(scalars.sum_over(n * n, axes), (1 - decay2) * largest)) / scalars.nonzero(
                jnp.sqrt(v) + floor
            )
            return v, correction * ratio(d, bound, rule)  # (4)

        compared = leaves.each(
            function, compare, g, [n], [decay2, floor, bound, correction], [averages, axes, read.rules]
        )

        def direction(o, w, lam, eta, alpha, factor, decays):
            if eta is None:
                return alpha * (factor * o + lam * w) if decays else alpha * factor * o  # (5)
            step = jnp.minimum(eta * alpha * factor, 1.0) * o
            return -(step + shrink(lam * jnp.minimum(eta * alpha, 1.0)) * w if decays else step)  # (6)

        alphas = [alpha for _, alpha in compared]
        new = leaves.lift(
            function, direction, o, reads=[w], coefficients=[lam, eta], per_leaf=[alphas, factors, decays]
        )
        nu = scalars.pack([v.astype(state.nu.dtype) for v, _ in compared])
        count = leaves.next_count(state.count)
        return read.together(new), make_state(count, mu, mu_weight, nu, nu_weight, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
