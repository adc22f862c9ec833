"""Convex functions that are sums over entries.

    name          K(x), summed over entries                   dK(x)                  K*(y), |y| <= 1 where finite
    l1            |x|                                         sign(x)                0                        (1)
    quadratic     x^2 / 2                                     x                      y^2 / 2, every y         (2)
    huber         x^2 / 2e inside, |x| - e/2 outside          clip(x / e, -1, 1)     (e/2) y^2                (3)
    dead_zone     max(|x| - e, 0)                             sign(x) [|x| > e]      e |y|                    (4)
    tanh          log cosh(s x) / s                           tanh(s x)              entropy(y) / s           (5)
    relativistic  sqrt(x^2 + e^2)                             x / sqrt(x^2 + e^2)    -e sqrt(1 - y^2)         (6)

entropy(y) = [(1+y) log(1+y) + (1-y) log(1-y)] / 2.  Each passes Fenchel-Young: K(x) + K*(dK(x)) = <x, dK(x)>.

With weight decay lam the conjugate becomes a penalty K*(lam w) / lam on the weights w, infinite outside
|lam w| <= 1 (every function here but the quadratic). e and 1/s are in units of the gradient: far from its typical
size these functions act as plain sign or as plain linear.

Source: Chen et al., Lion Secretly Solves Constrained Optimization, ICLR 2024, arXiv 2310.05898; optax's
scale_by_lion modes 'smooth' and 'refined' are (5) with s = 1 and (3) with e = 1.
"""

from collections.abc import Callable

import jax.numpy as jnp

from momentax.convex._convex_function import ConvexFunction, within
from momentax.convex._parameters import number


def l1() -> ConvexFunction:
    """The sum of absolute values (1): Lion. Weight decay lam keeps every |w| <= 1 / lam.

    >>> print(l1().subgradient(jnp.array([-3.0, 0.0, 2.0])))
    [-1.  0.  1.]
    """
    return _boxed("l1", value=jnp.abs, subgradient=jnp.sign, conjugate=jnp.zeros_like)


def quadratic() -> ConvexFunction:
    """Half the squared norm (2): momentum as it is, with L2 regularisation (lam / 2) |w|^2 and no constraint.

    >>> print(quadratic().subgradient(jnp.array([-3.0, 0.0, 2.0])))
    [-3.  0.  2.]
    """

    def half_square(x):
        return jnp.sum(x * x) / 2

    return ConvexFunction(
        name="quadratic",
        value=half_square,
        subgradient=lambda x: x,
        conjugate=half_square,
        gauge=lambda y: jnp.zeros([], y.dtype),
    )


def huber(e: float) -> ConvexFunction:
    """Quadratic below `e`, linear above (3). `e` > 0, in units of the gradient.

    >>> print(huber(2.0).subgradient(jnp.array([-3.0, 0.0, 1.0])))
    [-1.   0.   0.5]
    """
    e = number("huber", "e", e, above=0)
    return _boxed(
        f"huber({e})",
        value=lambda x: jnp.where(jnp.abs(x) <= e, x * x / (2 * e), jnp.abs(x) - e / 2),
        subgradient=lambda x: jnp.clip(x / e, -1, 1),
        conjugate=lambda y: e / 2 * y * y,
    )


def dead_zone(e: float) -> ConvexFunction:
    """Zero below `e`, linear above (4): entries with little momentum do not move. `e` >= 0, in gradient units.

    >>> print(dead_zone(1.0).subgradient(jnp.array([-3.0, 0.5, 2.0])))
    [-1.  0.  1.]
    """
    e = number("dead_zone", "e", e, above=0, inclusive=True)
    return _boxed(
        f"dead_zone({e})",
        value=lambda x: jnp.maximum(jnp.abs(x) - e, 0),
        subgradient=lambda x: jnp.where(jnp.abs(x) <= e, jnp.zeros_like(x), jnp.sign(x)),  # a NaN goes on
        conjugate=lambda y: e * jnp.abs(y),
    )


def tanh(slope: float) -> ConvexFunction:
    """log cosh (5): the smooth sign with this slope at zero. `slope` > 0, in units of 1 / gradient.

    >>> print(tanh(1.0).subgradient(jnp.array([-30.0, 0.0, 30.0])))
    [-1.  0.  1.]
    """
    slope = number("tanh", "slope", slope, above=0)

    def log_cosh(x):
        size = jnp.abs(slope * x)  # log cosh z = |z| + log(1 + exp(-2|z|)) - log 2 does not overflow
        return (size + jnp.log1p(jnp.exp(-2 * size)) - jnp.log(2.0).astype(x.dtype)) / slope

    def entropy(y):
        def part(z):  # z log z, continued by 0 at z = 0
            return jnp.where(z > 0, z * jnp.log(jnp.where(z > 0, z, jnp.ones_like(z))), jnp.zeros_like(z))

        return (part(1 + y) + part(1 - y)) / (2 * slope)

    return _boxed(f"tanh({slope})", value=log_cosh, subgradient=lambda x: jnp.tanh(slope * x), conjugate=entropy)


def relativistic(e: float) -> ConvexFunction:
    """The relativistic energy (6): speed limited to 1, linear below `e`. `e` > 0, in units of the gradient.

    >>> print(relativistic(3.0).subgradient(jnp.array([-4.0, 0.0])))
    [-0.8  0. ]
    """
    e = number("relativistic", "e", e, above=0)
    return _boxed(
        f"relativistic({e})",
        value=lambda x: jnp.hypot(x, jnp.full_like(x, e)),  # does not overflow, where the root of the squares does
        subgradient=lambda x: x / jnp.hypot(x, jnp.full_like(x, e)),
        conjugate=lambda y: -e * jnp.sqrt(jnp.maximum(1 - y * y, 0)),
    )


def _boxed(name: str, *, value: Callable, subgradient: Callable, conjugate: Callable) -> ConvexFunction:
    """A function whose conjugate is finite on the box |y| <= 1 only."""

    def gauge(y):
        return jnp.max(jnp.abs(y), initial=0.0)

    def boxed_conjugate(y):
        return within(gauge(y), jnp.sum(conjugate(y)))

    return ConvexFunction(name, lambda x: jnp.sum(value(x)), subgradient, boxed_conjugate, gauge)
