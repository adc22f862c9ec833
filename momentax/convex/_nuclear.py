"""The nuclear norm: the sum of singular values.

    K(x)   = sigma_1 + ... + sigma_n,   x = U S V'                                                (1)
    dK(x)  = U V', the polar factor, without the singular values that are zero                    (2)
    K*(y)  = 0 where every singular value of y is at most 1, infinite elsewhere                   (3)

Weight decay lam keeps the spectral norm of w at most 1 / lam. A leaf that is no matrix is a diagonal one: vectors and
embeddings have K(x) = sum |x_i|, dK(x) = sign(x), and every |w_i| <= 1 / lam.

x is read as the matrix (inputs, outputs) that `routing` states, each matrix of a stack alone; spatial axes of a
convolution are inputs.

Source: Chen et al., Lion Secretly Solves Constrained Optimization, ICLR 2024, arXiv 2310.05898; Chen, Li & Liu, Muon
Optimizes Under Spectral Norm Constraints, arXiv 2506.15054.
Departure: with `steps` the subgradient is that of iterations by products, as in Muon, but of the classical polynomial,
whose singular values stay in [0, 1], so that the bound 1 / lam holds; Muon's pass 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from momentax.convex._convex_function import ConvexFunction, indicator
from momentax.convex._elementwise import l1
from momentax.convex._layout import fold, rule_of
from momentax.convex._parameters import whole
from momentax.linalg import newton_schulz, polar
from momentax.routing import Rule
from momentax.sharding import carry


def nuclear(steps: int | None = None) -> ConvexFunction:
    """The nuclear norm (1): orthogonalised momentum. Weight decay lam keeps spectral norms at most 1 / lam.

    `steps` None is the exact polar factor (2), from a singular value decomposition: slow on accelerators. An integer
    takes that many Newton-Schulz steps, matrix products only. Their factor is in the unit ball of (3), so the bound on
    w holds as it is; but it is short of (2) along small singular values: one of size s comes out as about
    (15/8)^steps s / |x|_F until that nears 1. After 10 steps all above |x|_F / 250 are within 1 % of 1, after 15 steps
    all above |x|_F / 5900.
    On a mesh a matrix that is sharded may be gathered whole on every device.

    >>> print(nuclear().subgradient(jnp.array([[0.0, -3.0], [2.0, 0.0]])).round(3) + 0)
    [[ 0. -1.]
     [ 1.  0.]]
    """
    if steps is not None:
        steps = whole("nuclear", "steps", steps)
    name = "nuclear" if steps is None else f"nuclear(steps={steps})"
    factor = polar if steps is None else lambda x: newton_schulz(x, steps)
    entries = l1()

    def on(rule: Rule | None) -> ConvexFunction:
        def on_matrices(function: Callable, of_entries: Callable, place: Callable) -> Callable:
            """`function` of (matrices, the way back) where x is a matrix, `of_entries` where it is none."""

            def call(x):
                read = rule_of(name, x, rule)
                if not read.is_matrix or not x.size:
                    return of_entries(x)
                groups = (read.batch_axes, read.in_axes, read.out_axes)
                return carry(lambda x: (function(*fold(x, *groups)),), x, places=[place])[0]

            return call

        whole_array, one_number = lambda spec: spec, lambda spec: PartitionSpec()
        gauge = on_matrices(lambda y, back: jnp.max(_singular_values(y)), entries.gauge, one_number)
        return ConvexFunction(
            name=name,
            value=on_matrices(lambda x, back: jnp.sum(_singular_values(x)), entries.value, one_number),
            subgradient=on_matrices(lambda x, back: back(factor(x)), entries.subgradient, whole_array),
            conjugate=indicator(gauge),
            gauge=gauge,
            on=on,
            needs_axes=True,
        )

    return on(None)


def _singular_values(x: jax.Array) -> jax.Array:
    return jnp.linalg.svd(x, compute_uv=False)
