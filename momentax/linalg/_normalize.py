"""Scalings that bring singular values into [0, 1], and the Gram matrix where they need it.

    X / (|X|_F + eps)                                       (1)  "frobenius"
    X / (|X X'|_F^(1/2) + eps)                              (2)  "schatten": the Schatten norm of order 4
    X / (|X|_2 + eps)                                       (3)  "spectral": the largest singular value itself
    diag(1 / (r_i + eps)) X,  r_i^2 = sum_j |(X X')_ij|     (4)  "aol"

(2) is at most (1) and at least (3). (4) scales rows one by one: the iterations that follow converge to the polar factor
of diag(1 / r) X, which is not that of X.

Source: (1) Jordan et al., Muon, 2024. (2) Grishina et al., CANS, arXiv 2506.10935. (4) Boissin et al., Turbo-Muon,
arXiv 2512.04632, after Prach & Lampert, Almost-Orthogonal Layers, ECCV 2022.
Departure: eps is added to the norms in (2) to (4) as in (1); Optax puts a floor of 1e-8 under the squares, so that
matrices below 1e-4 are no longer divided by their norm.
"""

import jax
import jax.numpy as jnp

from momentax.linalg._products import product, rounded, store, wide

NORMALIZATIONS = ("frobenius", "schatten", "spectral", "aol", None)


def normalize(x: jax.Array, how: str | None, eps: float | None, dtype, precision) -> tuple[jax.Array, jax.Array | None]:
    """x, (..., m, n) with m <= n, scaled as `how` says and stored in `dtype`; and its X X' in `wide` where at hand.

    With eps None the result does not depend on the scale of x, which may be any that its dtype holds; zero stays zero.
    """
    if how is None:
        return store(x.astype(wide(dtype)), dtype), None
    if x.dtype != dtype and dtype == jnp.bfloat16:
        x = store(x, dtype)  # rounded before the norm is taken, as torch does
    x = x.astype(wide(dtype))
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))  # the result does not depend on it
    peak = jnp.where(peak == 0, jnp.ones_like(peak), peak)
    y = x / peak  # squares of the largest entry can neither overflow nor vanish
    if how == "frobenius":
        norm = jnp.sqrt(_one_for_zero(jnp.sum(y * y, axis=(-2, -1), keepdims=True)))
        if eps is None:
            return store(y / norm, dtype), None  # (1)
        kept = dtype if dtype == jnp.bfloat16 else x.dtype  # the norm may be too large for float16
        return store(x / rounded(rounded(norm * peak, kept) + eps, kept), dtype), None  # (1)
    y = store(y, dtype)
    gram = product(y, y.mT, precision)
    if how == "schatten":
        norm = _one_for_zero(jnp.sum(gram * gram, axis=(-2, -1), keepdims=True)) ** 0.25
    elif how == "spectral":
        finite = jnp.isfinite(peak)  # a solver need not cope with what is not finite
        values = jnp.linalg.eigvalsh(jnp.where(finite, gram, jnp.zeros_like(gram)))
        norm = jnp.sqrt(_one_for_zero(jnp.where(finite, values[..., -1:, None], jnp.full_like(peak, jnp.nan))))
    else:
        norm = jnp.sqrt(_one_for_zero(jnp.sum(jnp.abs(gram), axis=-1, keepdims=True)))
    scale = 1 / norm if eps is None else 1 / (norm + eps / peak)
    return store(y.astype(x.dtype) * scale, dtype), gram * scale * scale.mT  # (2), (3), (4)


def _one_for_zero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, jnp.ones_like(x), x)
