"""The sum of the k largest absolute values.

    K(x)   = |x|_(1) + ... + |x|_(k)                            the k largest of |x_i|            (1)
    dK(x)  = sign(x_i) where |x_i| is among them, else 0        the first where several are equal (2)
    K*(y)  = 0 where |y|_1 <= k and every |y_i| <= 1            infinite elsewhere                (3)

k = 1 is `linf()`, k = n is `l1()`. Weight decay lam keeps |w|_1 <= k / lam and every |w_i| <= 1 / lam.

Source: Chen et al., Lion Secretly Solves Constrained Optimization, ICLR 2024, arXiv 2310.05898.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from momentax.convex._convex_function import ConvexFunction, indicator
from momentax.convex._layout import fold, others, rule_of
from momentax.convex._parameters import whole
from momentax.routing import Rule
from momentax.sharding import carry


def top_k(k: int) -> ConvexFunction:
    """The sum of the k largest absolute values (1): the k entries with most momentum move, each by a unit.

    `k` is an integer, 1 or more, and no more than a leaf has entries (a matrix, in a stack whose batch axes `routing`
    states). Of equal entries the first in the layout of the leaf move. On a mesh a leaf that is sharded along other
    axes than those of a stack may be gathered whole on every device.

    >>> print(top_k(2).subgradient(jnp.array([1.0, -3.0, 0.5, -1.0])))
    [ 1. -1.  0.  0.]
    """
    k = whole("top_k", "k", k)
    name = f"top_k({k})"

    def on(rule: Rule | None) -> ConvexFunction:
        def groups(x):
            batch = rule_of(name, x, rule).batch_axes
            return batch, others(x, batch)

        def total(x):
            rows, _ = fold(jnp.abs(x), *groups(x))
            return (jnp.sum(jax.lax.top_k(rows, k)[0]),)

        def signs(x):
            rows, back = fold(x, *groups(x))
            _, index = jax.lax.top_k(jnp.abs(rows), k)
            largest = jnp.sign(jnp.take_along_axis(rows, index, axis=1))
            return (back(jnp.put_along_axis(jnp.zeros_like(rows), index, largest, axis=1, inplace=False)),)

        def gauge(y):
            size = jnp.abs(y)
            sums = jnp.sum(size, axis=groups(y)[1], keepdims=True)
            return jnp.maximum(jnp.max(sums, initial=0.0) / k, jnp.max(size, initial=0.0))

        return ConvexFunction(
            name=name,
            value=lambda x: carry(total, x, places=[lambda spec: PartitionSpec()])[0],
            subgradient=lambda x: carry(signs, x, places=[lambda spec: spec])[0],
            conjugate=indicator(gauge),
            gauge=gauge,
            on=on,
            smallest=k,
        )

    return on(None)
