"""Whitening by a Kronecker-factored Fisher matrix: a direction found where the gradient's entries are uncorrelated.

For each matrix, with m outputs and n inputs,

    L  = G Q^-1 G' / n + mu I,   P <- gamma P + (1 - gamma) L,   P <- m P / tr P     (1)
    R  = G' P^-1 G / m + mu I,   Q <- gamma Q + (1 - gamma) R,   Q <- n Q / tr Q     (2)  with the new P
    G~ = P^-1/2 G Q^-1/2                                                             (3)
    U  = P^-1/2 D Q^-1/2,   D: what `inner` makes of G~                              (4)

G: gradient, written m x n here.  P: m x m, Q: n x n, both start at the identity.  gamma: `b2`.  mu: `damping`.
Momentum inside `inner` is kept in the coordinates of (3). The negative of (4) with D = the polar factor of G~ is the
steepest descent under |P^1/2 U Q^1/2|_2 <= 1.

**Scale.** The average mixes P, whose mean diagonal entry is 1, with G Q^-1 G' / n, whose mean diagonal entry is the
mean square of the gradient. For gradients of the size that networks have (1e-3, say) mu I swamps it: P and Q stay at
the identity, and nothing is whitened. normalize_stats=True divides the first terms of L and R by their mean diagonal
entry and does not depend on the size of gradients. Say which one an experiment used.

Contract: wrapper; with inner=None, U = P^-1 G Q^-1, a natural gradient step.
Source: Xu, Yan & Zhang, FISMO: Fisher-Structured Momentum-Orthogonalized Optimizer, arXiv 2601.21750, Algorithm 1.
Departure: we know the algorithm from two transcriptions that agree. P, Q = I at the start, as the traces ask for; they
do not say. mu tr(P) / m is written mu: (1) and (2) keep the traces. L is computed as Y Y' / n, Y = G Q^-1/2, which is
symmetric and needs no second inverse.
Departure: normalize_stats, max_dim and update_every are ours.
Eigenvalues are floored at 1e-8 of the largest. A zero gradient draws P and Q to the identity. A matrix with an entry
that is not finite becomes NaN and stays so; `optax.apply_if_finite` keeps it out. The others of its stack do not
notice.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.linalg import inverse_root
from momentax.matrices import fans, matrices
from momentax.routing import Routing, Rule
from momentax.typing import Count, ScalarOrSchedule, Transformation

NAME = "whiten_by_fisher"
FLOOR = 1e-8  # of the largest eigenvalue


class WhitenByFisherState(NamedTuple):
    """State of `whiten_by_fisher`.

    Attributes:
      count: steps taken, int32 scalar.
      inner: state of the inner transformation.
      factors: P of all matrices, leaf by leaf, then Q, in one vector; identities at the start. A side without a factor
        has the number 1.
      roots: their inverse square roots, laid out alike.
    """

    count: Count
    inner: optax.OptState
    factors: jax.Array
    roots: jax.Array


def whiten_by_fisher(
    inner: Transformation | None = None,
    b2: ScalarOrSchedule = 0.95,
    damping: ScalarOrSchedule = 0.1,
    *,
    normalize_stats: bool = False,
    update_every: int = 1,
    max_dim: int | None = None,
    root: str = "eigh",
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Whitens each gradient matrix on both sides, lets `inner` find a direction there, and whitens that once more.

    Per matrix the state holds 2 (m^2 + n^2) numbers, float32 (float64 under x64), whole on every device.

    Args:
      inner: transformation that sees the whitened gradient, and the parameters as they are; None is (4) with D = G~.
      b2: gamma, decay of the factors, in [0, 1]; number or schedule. 0.95 is ours: the paper's could not be read. 1
        keeps the identity and whitens nothing.
      damping: mu, not negative, in units of the mean diagonal entry of P and Q; number or schedule. 0.1 is ours.
      normalize_stats: divide the first terms of L and R by their mean diagonal entry, so that the size of gradients
        does not matter; False is the paper's algorithm, see the module's docstring.
      update_every: k; the inverse roots are computed in every k-th step, beginning with the first, and serve (1) to (4)
        until the next. P and Q move in every step. 1 as in the paper.
      max_dim: a side longer than this has no factor: whitening is then one-sided. None sets no bound.
      root: "eigh", or "newton", by matrix products alone. On a CPU the threads of LAPACK can slow small matrices
        down many times over: set OPENBLAS_NUM_THREADS=1.
      routing: states the axes of matrices and stacks; None for the conventions of Flax. P is on the side of the
        outputs.

    Raises:
      ValueError: a coefficient out of range, a leaf that is no matrix, one whose axes cannot be told, or gradients that
        do not match the state.
      TypeError: `inner` is no transformation, or a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.whiten_by_fisher(b2=0.0, damping=0.0, max_dim=2)
      >>> w = {"kernel": jnp.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])}  # three inputs, two outputs
      >>> u, state = tx.update(w, tx.init(w))
      >>> print(state.factors[:4].round(3))  # P = 2 G G' / tr(G G')
      [1.6 0.  0.  0.4]
    """
    checks.check_interval(NAME, b2=b2)
    checks.check_non_negative(NAME, damping=damping)
    checks.check_steps(NAME, update_every=update_every, max_dim=max_dim)
    checks.check_choice(NAME, "root", root, ("eigh", "newton"))
    inner = optax.identity() if inner is None else inner
    checks.check_transformation(NAME, "inner", inner)
    wrapped = optax.with_extra_args_support(inner)
    inverse_square_root = functools.partial(inverse_root, root=2, method=root, floor=FLOOR)

    def init(params):
        read = matrices(NAME, params, routing)
        shapes = _shapes(params, read.fused, max_dim)
        factors, roots = (_pack([jnp.broadcast_to(jnp.eye(s[-1]), s) for s in shapes]) for _ in range(2))
        return WhitenByFisherState(jnp.zeros([], jnp.int32), wrapped.init(params), factors, roots)

    def update(updates, state, params=None, **extra_args):
        read = matrices(NAME, updates, routing)
        shapes = _shapes(updates, read.fused, max_dim)
        decay, mu = (jnp.asarray(leaves.value_at(value, state.count), leaves.float_dtype()) for value in (b2, damping))
        due = state.count % update_every == 0

        def step(x, p, q, p_root, q_root, decay, mu, due):
            decay, mu = decay.astype(x.dtype), mu.astype(x.dtype)
            average = functools.partial(_average, x, decay=decay, mu=mu, normalize=normalize_stats)

            def root_of(factor, old):
                if update_every == 1:
                    return inverse_square_root(factor)
                return jax.lax.cond(due, inverse_square_root, lambda _: old, factor)

            p = average(p, q_root, outputs=True)  # (1)
            p_root = root_of(p, p_root)
            q = average(q, p_root, outputs=False)  # (2)
            q_root = root_of(q, q_root)
            return _sandwich(x, p_root, q_root), p, q, p_root, q_root  # (3)

        def whiten_again(x, p_root, q_root):
            return _sandwich(x, p_root, q_root), p_root, q_root  # (4)

        flat = _computable(updates)
        packed = [part for vector in (state.factors, state.roots) for part in _unpack(vector, shapes, flat)]
        whitened, p, q, p_root, q_root = read.map(NAME, step, flat, beside=packed, shared=(decay, mu, due), cost=_cost)
        directions, inner_state = wrapped.update(_like(updates, whitened), state.inner, params, **extra_args)
        new, *_ = read.map(NAME, whiten_again, _computable(directions), beside=[p_root, q_root], cost=_cost)
        count = leaves.next_count(state.count)
        new_state = WhitenByFisherState(count, inner_state, _pack(p + q), _pack(p_root + q_root))
        return _like(updates, new), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _computable(tree: Any) -> list[jax.Array]:
    """The leaves in their compute dtype."""
    return [x.astype(leaves.compute_dtype(x)) for x in jax.tree.leaves(tree)]


def _like(tree: Any, flat: list[jax.Array]) -> Any:
    """A tree of new values in the old dtypes."""
    old, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [x.astype(u.dtype) for x, u in zip(flat, old, strict=True)])


def _shapes(tree: Any, rules: tuple[Rule, ...], max_dim: int | None) -> list[tuple[int, ...]]:
    """The shapes of all P, then of all Q. A side of length 1, or longer than `max_dim`, has the factor 1."""
    shapes: list[list[tuple[int, ...]]] = [[], []]
    for x, rule in zip(jax.tree.leaves(tree), rules, strict=True):
        fan_in, fan_out = fans(x.shape, rule)
        for side, of_side in zip((fan_out, fan_in), shapes, strict=True):
            kept = side if max_dim is None or side <= max_dim else 1
            of_side.append((x.size // max(fan_in * fan_out, 1), kept, kept))
    return shapes[0] + shapes[1]


def _pack(parts: list[jax.Array]) -> jax.Array:
    dtype = leaves.float_dtype()
    return scalars.pack([part.astype(dtype) for part in parts]) if parts else jnp.zeros(1, dtype)


def _unpack(vector: jax.Array, shapes: list[tuple[int, ...]], flat: list[jax.Array]) -> tuple[list, list]:
    """P and Q, or their roots, of each leaf, in its compute dtype."""
    parts = scalars.unpack(NAME, vector, shapes)
    parts = [part.astype(x.dtype) for part, x in zip(parts, 2 * flat, strict=True)]
    return parts[: len(flat)], parts[len(flat) :]


def _cost(fan_in: int, fan_out: int) -> float:
    """Operations of one matrix up to a factor that all share: products with it and roots of both sides."""
    return (fan_in + fan_out) ** 3


def _average(x, factor, root, *, decay, mu, outputs: bool, normalize: bool) -> jax.Array:
    """(1) for gradients x (k, in, out), the root being that of Q; or (2), the root being that of P."""
    side = factor.shape[-1]
    if side == 1:
        return factor
    if normalize:  # the result does not depend on the size of x, and squares of tiny numbers would be zero
        x = x / scalars.nonzero(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))
    y = _times(x.mT if outputs else x, root)
    # The trace is fixed afterwards: with a large y scaled down by a power of two, which rounds nothing, no square can
    # overflow.
    _, exponent = jnp.frexp(jnp.max(jnp.abs(y), axis=(-2, -1), keepdims=True))
    unit = jnp.ldexp(jnp.ones_like(y[..., :1, :1]), -jnp.maximum(exponent, 0))
    data = jnp.matmul(y * unit, (y * unit).mT, precision="highest") / y.shape[-1]
    if normalize:
        unit, data = jnp.ones_like(unit), data / scalars.nonzero(_trace(data) / side)
    new = decay * factor * unit * unit + (1 - decay) * (data + mu * unit * unit * jnp.eye(side, dtype=x.dtype)[None])
    trace = _trace(new)
    new = jnp.where(trace == 0, factor, new * (side / scalars.nonzero(trace)))
    return (new + new.mT) / 2


def _sandwich(x: jax.Array, p: jax.Array, q: jax.Array) -> jax.Array:
    """(3), (4): x is (k, in, out), so Q stands on the left."""
    return _times(_times(x, p).mT, q).mT


def _times(x: jax.Array, root: jax.Array) -> jax.Array:
    return x * root if root.shape[-1] == 1 else jnp.matmul(x, root, precision="highest")


def _trace(x: jax.Array) -> jax.Array:
    return jnp.trace(x, axis1=-2, axis2=-1)[..., None, None]
