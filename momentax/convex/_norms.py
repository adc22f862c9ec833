"""Convex functions that are norms of the whole leaf, of its rows, or of all leaves together.

    name      K(x)                 dK(x)                                   K*(y) = 0 where (infinite elsewhere)
    l2        |x|_2                x / |x|_2                               |y|_2 <= 1                       (1)
    lp        |x|_p, 1 < p < inf   sign(x) (|x| / |x|_p)^(p - 1)           |y|_q <= 1,  1/p + 1/q = 1       (2)
    linf      max |x_i|            sign(x_i) at the first largest |x_i|    |y|_1 <= 1                       (3)
    row_norm  sum_r |x_r|_2        x_r / |x_r|_2 in every row r            |y_r|_2 <= 1 in every row r      (4)

|x|_p: the p-th root of the sum of |x_i|^p over the entries of a leaf, of each matrix of a stack whose batch axes
`routing` states, or with l2(scope="global") of all leaves. Each is 0 with subgradient 0 at 0, and passes Fenchel-Young:
K(x) + K*(dK(x)) = <x, dK(x)>. Weight decay lam puts lam w where K* is 0: the dual norm of w is at most 1 / lam.

(1) and (4) add plain squares, the price of two passes over the momentum. In float32 a group of n entries is scaled
rightly for norms between 3e-16 sqrt(n), below which its subgradient shrinks with x, and 1e19, above which it is zero;
either way it stays in the dual ball. (2) and (3) take any size, at the price of a third pass.

Source: Chen et al., Lion Secretly Solves Constrained Optimization, ICLR 2024, arXiv 2310.05898.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from momentax import checks, leaves
from momentax.convex._convex_function import ConvexFunction, indicator
from momentax.convex._layout import others, rule_of
from momentax.convex._parameters import number
from momentax.routing import Rule

Axes = tuple[int, ...]


def l2(scope: str = "leaf") -> ConvexFunction:
    """The Euclidean norm (1): normalised momentum. Weight decay lam keeps |w|_2 <= 1 / lam, w a leaf or all of them.

    `scope` is "leaf" or "global". Accurate for norms between 3e-16 sqrt(n) and 1e19 in float32.

    >>> print(l2().subgradient(jnp.array([-3.0, 0.0, 4.0])))
    [-0.6  0.   0.8]
    >>> print(l2(scope="global").value({"a": jnp.array([-3.0, 0.0]), "b": jnp.array(4.0)}))
    5.0
    """
    checks.check_choice("l2", "scope", scope, ("leaf", "global"))
    return _global_l2() if scope == "global" else _of_groups("l2", _euclidean, _unit, _euclidean, _stack)


def lp(p: float) -> ConvexFunction:
    """The p-norm (2), between sign (p = 1) and a single entry (p = inf). Weight decay lam keeps |w|_q <= 1 / lam.

    `p` > 1 and finite; the ends are `l1()` and `linf()`.

    >>> print(f"{lp(3).value(jnp.array([3.0, -4.0, 5.0])):.4f}")
    6.0000
    """
    for end, name in ((1, "l1"), (math.inf, "linf")):
        if p == end:
            raise ValueError(f"lp: for p = {end} use momentax.convex.{name}(); `p` must be above 1, and finite.")
    p = number("lp", "p", p, above=1)
    q = p / (p - 1)

    def unit(x, axes):
        _, ratio, root = _scaled(x, axes, p)
        return jnp.sign(x) * (ratio / jnp.maximum(root, 1)) ** (p - 1)

    def norm(x, axes, exponent=p):
        peak, _, root = _scaled(x, axes, exponent)
        return peak * root

    return _of_groups(f"lp({p})", norm, unit, lambda y, axes: norm(y, axes, q), _stack)


def linf() -> ConvexFunction:
    """The largest absolute value (3): one entry moves at a time. Weight decay lam keeps sum |w_i| <= 1 / lam.

    Of equal entries the first in the layout of the leaf moves.

    >>> print(linf().subgradient(jnp.array([1.0, -3.0, 3.0])))
    [ 0. -1.  0.]
    """
    return _of_groups("linf", _largest, _first_largest, lambda y, axes: _sum(jnp.abs(y), axes), _stack)


def row_norm() -> ConvexFunction:
    """The sum over channels of Euclidean norms (4): every row has a unit step. Weight decay lam keeps |w_r| <= 1 / lam.

    The rows of a matrix are its output channels, those of an embedding its tokens, and a vector is one row. Accurate
    for norms of a row between 3e-16 sqrt(n) and 1e19 in float32.

    >>> print(row_norm().subgradient(jnp.array([[3.0, 0.0], [4.0, -2.0]])))
    [[ 0.6  0. ]
     [ 0.8 -1. ]]
    """
    rows = lambda rule: (*rule.batch_axes, *rule.channel_axes)  # noqa: E731
    return _of_groups("row_norm", _euclidean, _unit, _euclidean, rows, needs_axes=True)


def _stack(rule: Rule) -> Axes:
    return rule.batch_axes


def _of_groups(
    name: str, norm: Callable, unit: Callable, dual: Callable, kept: Callable[[Rule], Axes], needs_axes: bool = False
) -> ConvexFunction:
    """The sum of the norms of independent groups, one for each entry of the axes `kept`.

    `norm`, its subgradient `unit` and its `dual` take an array and the axes that they reduce, and keep these.
    """

    def on(rule: Rule | None) -> ConvexFunction:
        def axes(x):
            return others(x, kept(rule_of(name, x, rule)))

        def gauge(y):
            return jnp.max(dual(y, axes(y)), initial=0.0)

        return ConvexFunction(
            name=name,
            value=lambda x: jnp.sum(norm(x, axes(x))),
            subgradient=lambda x: unit(x, axes(x)),
            conjugate=indicator(gauge),
            gauge=gauge,
            on=on,
            needs_axes=needs_axes,
        )

    return on(None)


def _sum(x: jax.Array, axes: Axes) -> jax.Array:
    return jnp.sum(x, axis=axes, keepdims=True)


def _largest(x: jax.Array, axes: Axes) -> jax.Array:
    return jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)


def _euclidean(x: jax.Array, axes: Axes) -> jax.Array:
    return jnp.sqrt(_sum(x * x, axes))


def _unit(x: jax.Array, axes: Axes) -> jax.Array:
    return x / jnp.maximum(_euclidean(x, axes), math.sqrt(_lost(x, axes)))


def _lost(x: jax.Array, axes: Axes) -> float:
    """A sum of squares that dwarfs, by 1 / eps, all the squares of n entries that are too small for the dtype."""
    numbers = jnp.finfo(x.dtype)
    return math.prod(x.shape[axis] for axis in axes) * float(numbers.tiny) / float(numbers.eps)


def _scaled(x: jax.Array, axes: Axes, p: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """m = max |x|, |x| / m, and the p-norm of that, 1 or more unless x = 0: nothing overflows or vanishes."""
    peak = _largest(x, axes)
    ratio = jnp.abs(x) / jnp.where(peak == 0, jnp.ones_like(peak), peak)
    return peak, ratio, _sum(ratio**p, axes) ** (1 / p)


def _first_largest(x: jax.Array, axes: Axes) -> jax.Array:
    """The sign of x at the first of its largest entries, zero elsewhere.

    One axis after the other, from the last: no index can overflow, and every reduction stays legal on a sharded axis.
    """
    peak, first = jnp.abs(x), jnp.ones((1,) * x.ndim, bool)
    for axis in reversed(axes):
        size = x.shape[axis]
        index = lax.broadcasted_iota(jnp.int32, [size if i == axis else 1 for i in range(x.ndim)], axis)
        top = jnp.max(peak, axis=axis, keepdims=True, initial=0.0)
        earliest = jnp.min(jnp.where(peak == top, index, size), axis=axis, keepdims=True, initial=size)
        first, peak = first & (index == earliest), top
    return jnp.where(first, jnp.sign(x), jnp.where(jnp.isnan(peak), peak, jnp.zeros_like(peak)))


def _global_l2() -> ConvexFunction:
    def squares(tree):
        parts = [jnp.sum(x * x).astype(leaves.float_dtype()) for x in jax.tree.leaves(tree)]
        return sum(parts, jnp.zeros([], leaves.float_dtype()))

    def norm(tree):
        return jnp.sqrt(squares(tree))

    def unit(tree):
        floor = math.sqrt(sum(_lost(x, others(x, ())) for x in jax.tree.leaves(tree)))
        length = jnp.maximum(norm(tree), floor)
        return jax.tree.map(lambda x: x / length.astype(x.dtype), tree)

    return ConvexFunction("l2(scope='global')", norm, unit, indicator(norm), norm, scope="global")
