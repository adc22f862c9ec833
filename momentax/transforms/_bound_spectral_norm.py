"""Steps of a known spectral norm, so that weights keep the spectral norm on which a width-independent rate rests.

    O = polar(N), made by a polynomial that nowhere exceeds 1: |O|_2 <= 1                (1)
    U = kappa sqrt(fan_out / fan_in) O                                                   (2)
    O = polar(N + nu u v'), nu such that u' O v = 0                                      (3)  tangent=True

N: incoming update, read as matrices by `routing`, each of a stack alone.  u, v: singular vectors of the weight W to its
largest singular value s1.  With w <- (1 - eta lam) w - eta U, (1) and (2) guarantee

    |W_t|_2 <= max(|W_0|_2, kappa sqrt(fan_out / fan_in) / lam)   for lam > 0, eta lam <= 1
    |W_t|_2 <= |W_0|_2 + kappa sqrt(fan_out / fan_in) sum of eta  without decay

up to rounding, whatever the gradients are. (3) is the steepest step that leaves s1 alone to first order: it moves by
O(eta^2 / (s1 - s2)).

In (1) the last row of the table is divided by the largest value that its polynomials take on (0, 1]: Muon's table
overshoots by 20%, Polar Express with six steps by 0.1%. u, v and s2 come from power iteration on W, which continues
where the last step ended. Where s1 - s2 <= 0.001 s1 no direction is the top one, and (1) is taken. In (3) u' O v rises
with nu, being the derivative of the nuclear norm of N + nu u v'; six bisections enclose its root, and O is that mixture
of the polar factors at both ends for which u' O v = 0: its spectral norm is theirs at most, and <N, O> within 1% of the
largest that is possible.

Contract: transform (tangent=True needs the parameters).
Source: Zhao, Towards a Principled Muon under muP: Ensuring Spectral Conditions throughout Training, arXiv 2601.01306;
(2) Yang, Simon & Bernstein, A Spectral Condition for Feature Learning, arXiv 2310.17813.
Departure: of the paper only the abstract could be read, so (1) to (3) are our reading of it: control the spectrum of
the updates, do not normalise weights. Its data-dependent condition is left out.
Zero gives zero. A matrix with an entry that is not finite becomes NaN; the others do not notice.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.linalg import coefficients, newton_schulz, polar, power_iteration, singular_value_range
from momentax.matrices import fans, matrices
from momentax.routing import Routing
from momentax.typing import Count, ScalarOrSchedule

NAME = "bound_spectral_norm"
POWER_STEPS = 16  # of power iteration a step
BISECTIONS = 6  # of (3), each with a polar factor, as have both ends
GAP = 1e-3  # share of s1 by which s2 must be smaller
HALF_SAFETY = 1.02  # without it Polar Express lifts what rounding to bfloat16 puts above 1, a thousandfold in six steps
HALF_NORM = 1.01  # where rounding to bfloat16 may put the largest singular value of a matrix of norm 1


class BoundSpectralNormState(NamedTuple):
    """State of `bound_spectral_norm`.

    Attributes:
      count: steps taken, int32 scalar.
      top: for each matrix the singular vectors of its outputs to s1 and s2, in one vector; zeros at the start. None
        without tangent=True.
    """

    count: Count
    top: jax.Array | None


def bound_spectral_norm(
    kappa: ScalarOrSchedule = 1.0,
    *,
    tangent: bool = False,
    method: str | Sequence[Sequence[float]] = "polar_express",
    steps: int = 6,
    compute_dtype=None,
    precision="highest",
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each matrix by its polar factor at spectral norm kappa sqrt(fan_out / fan_in), never above it.

    Args:
      kappa: the largest change of a layer's output in root mean square, relative to its input and the learning rate,
        not negative; number or schedule. 1 is ours.
      tangent: take (3), at eight times the cost.
      method: table of coefficients, as in `momentax.orthogonalize`, or "exact".
      steps: rows of the table that are applied. 6 lifts singular values from |N|_F / 1000 on to within 0.3% of 1.
      compute_dtype: dtype of the iteration; None is the leaf's own, float32 for half precision, in which rounding
        exceeds 1 by 1e-5. In bfloat16 it is 1%.
      precision: of the products, as in `jax.lax.Precision`.
      routing: states the axes of matrices and stacks; None for the conventions of Flax.

    Raises:
      ValueError: a negative kappa, an unknown table or one that grows without bound, missing `params` with
        tangent=True, a leaf that is no matrix, or one whose axes cannot be told.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.bound_spectral_norm(tangent=True)
      >>> w = {"kernel": jnp.diag(jnp.array([2.0, 1.0]))}
      >>> n = {"kernel": jnp.array([[5.0, 0.0], [0.0, 3.0]])}
      >>> print(tx.update(n, tx.init(w), w)[0]["kernel"].round(2) + 0)  # the largest singular value stays
      [[0. 0.]
       [0. 1.]]
    """
    checks.check_non_negative(NAME, kappa=kappa)
    checks.check_steps(NAME, steps=steps)
    factor = (
        _exact if isinstance(method, str) and method == "exact" else _bounded(method, steps, compute_dtype, precision)
    )

    def compute(stack):
        return factor(stack if compute_dtype is None else stack.astype(compute_dtype)).astype(stack.dtype)

    def init(params):
        read = matrices(NAME, params, routing)
        count = jnp.zeros([], jnp.int32)
        if not tangent:
            return BoundSpectralNormState(count, None)
        shapes = _shapes(params, read.fused)
        return BoundSpectralNormState(count, jnp.zeros(scalars.vector_size(shapes)))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        read = matrices(NAME, updates, routing)
        flat, treedef = jax.tree.flatten(updates)
        wide = [x.astype(leaves.compute_dtype(x)) for x in flat]
        top = state.top
        if tangent:
            params = leaves.require_params(NAME, params)
            leaves.leaves_like(NAME, updates, params)
            weights = [w.astype(x.dtype) for w, x in zip(jax.tree.leaves(params), wide, strict=True)]
            starts = scalars.unpack(NAME, state.top, _shapes(updates, read.fused))
            starts = [start.astype(x.dtype) for start, x in zip(starts, wide, strict=True)]
            results, starts = read.map(
                NAME, functools.partial(_tangent, compute), wide, more=[weights], beside=[starts]
            )
            top = scalars.pack([start.astype(top.dtype) for start in starts]) if starts else top
        else:
            results = read.map(NAME, lambda x: compute(_unit(x)), wide)  # (1)
        size = leaves.value_at(kappa, state.count)
        new = []
        for result, x, (fan_in, fan_out) in zip(results, flat, read.fans(flat), strict=True):
            scale = jnp.asarray(size * math.sqrt(fan_out / max(fan_in, 1)), result.dtype)  # (2)
            new.append((scale * result).astype(x.dtype))
        return jax.tree.unflatten(treedef, new), BoundSpectralNormState(leaves.next_count(state.count), top)

    return optax.GradientTransformationExtraArgs(init, update)


def _exact(x):
    return polar(x.astype(leaves.compute_dtype(x)))


def _bounded(method, steps, compute_dtype, precision):
    """Newton-Schulz with a table whose composition stays in [0, 1] on (0, 1]."""
    half = compute_dtype is not None and jnp.dtype(compute_dtype).itemsize < 4
    try:
        table = coefficients(method, steps, safety=HALF_SAFETY if half else 1.0)
    except ValueError as error:
        raise ValueError(f"{NAME}: `method` is no good ({error}). Besides, it may be 'exact'.") from None
    largest = singular_value_range(table, 0.0, HALF_NORM if half else 1.0)[1]
    if not math.isfinite(largest):
        raise ValueError(f"{NAME}: the table `method` grows without bound on [0, 1]; take another, or fewer steps.")
    last = tuple(c / max(1.0, largest) for c in table[-1])
    return functools.partial(
        newton_schulz, steps=steps, coefficients=(*table[:-1], last), form="auto", precision=precision
    )


def _shapes(tree, rules) -> list[tuple[int, ...]]:
    """For each leaf the shape of the two vectors that power iteration starts from."""
    fan = [fans(x.shape, rule) for x, rule in zip(jax.tree.leaves(tree), rules, strict=True)]
    return [(x.size // max(math.prod(f), 1), 2, f[1]) for x, f in zip(jax.tree.leaves(tree), fan, strict=True)]


def _unit(x):
    """x at Frobenius norm 1, by way of its largest entry: squares can neither overflow nor vanish."""
    x = x / scalars.nonzero(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))
    return x / scalars.nonzero(jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True)))


def _top_pair(w, start):
    """For weights w (k, in, out): u v' of s1, zero where s1 does not stand out, and the next start (k, 2, out)."""
    s1, u, v = power_iteration(w, POWER_STEPS, start[:, 0])
    pair = u[:, :, None] * v[:, None, :]
    s2, _, below = power_iteration(w - s1[:, None, None] * pair, POWER_STEPS, start[:, 1])
    stands_out = (s1 - s2 > GAP * s1)[:, None, None]
    return jnp.where(stands_out, pair, jnp.zeros_like(pair)), jnp.stack([v, below], axis=1)


def _tangent(compute, x, w, start):
    """(3) for matrices x (k, in, out) and weights w, and the next start of power iteration (k, 2, out)."""
    pair, start = _top_pair(w, start)
    x = _unit(x)
    tangential = _unit_or_zero(x - _along(x, pair) * pair)

    def factor_at(nu):
        factor = compute(tangential + nu * pair)
        return factor, _along(factor, pair)

    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        above = factor_at(middle)[1] > 0
        return jnp.where(above, ends[0], middle), jnp.where(above, middle, ends[1])

    # the nuclear norm is least at nu, so |nu| is at most twice that of x, which is at most the root of the rank
    bound = 2 * math.sqrt(min(x.shape[1:])) * jnp.ones_like(x[:, :1, :1])
    below, above = jax.lax.fori_loop(0, BISECTIONS, halve, (-bound, bound))
    lower, f_lower = factor_at(below)
    upper, f_upper = factor_at(above)
    share = jnp.clip(f_upper / scalars.nonzero(f_upper - f_lower), 0, 1)  # where u v' = 0 it is (1)
    return share * lower + (1 - share) * upper, start


def _along(x, pair):
    return jnp.sum(x * pair, axis=(-2, -1), keepdims=True)


def _unit_or_zero(x):
    """x at Frobenius norm 1, or zero where it is what rounding leaves of a matrix of norm 1 along the top pair."""
    norm = jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True))
    noise = norm <= jnp.finfo(x.dtype).eps ** 0.5
    return jnp.where(noise, jnp.zeros_like(x), x / jnp.where(noise, jnp.ones_like(norm), norm))
