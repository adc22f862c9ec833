"""The polar factor of a matrix, exactly: by singular values, or by products until nothing is left to correct.

Source: the products are those of `newton_schulz` with a schedule of `polar_express` that ends in its limit.
"""

import functools

import jax
import jax.numpy as jnp

from momentax.linalg._newton_schulz import newton_schulz
from momentax.linalg._products import check_matrices, wide
from momentax.linalg._schedules import Table, polar_express, singular_value_range

_SAFETY = 1.001  # what rounding puts above the interval would otherwise grow twelvefold a step until the last ones


def polar(x: jax.Array) -> jax.Array:
    """U V' of the singular value decomposition U S V': the nearest matrix whose singular values are all 1.

    Singular values of at most max(m, n) eps sigma_max are noise, and dropped: the factor has the rank of x, and that
    of zero is zero.

    Args:
      x: matrices (..., m, n), float32 or float64, of any size that the dtype holds. A matrix with an entry that is not
        finite gives NaN, and leaves the others alone.

    Returns:
      Matrices like `x`.

    Example:
      >>> print(polar(jnp.array([[0.0, -3.0, 0.0], [2.0, 0.0, 0.0]])).round(3) + 0)
      [[ 0. -1.  0.]
       [ 1.  0.  0.]]
    """
    peak = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)  # the factor does not depend on the scale of x
    finite = jnp.isfinite(peak)
    scaled = jnp.where(finite, x / jnp.where(peak == 0, jnp.ones_like(peak), peak), jnp.zeros_like(x))
    u, s, v_t = jnp.linalg.svd(scaled, full_matrices=False)
    kept = s > max(x.shape[-2:]) * jnp.finfo(x.dtype).eps * s[..., :1]
    factor = jnp.matmul(jnp.where(kept[..., None, :], u, jnp.zeros_like(u)), v_t, precision="highest")
    return jnp.where(finite, factor, jnp.full_like(factor, jnp.nan))


def polar_by_products(x: jax.Array, smallest: float = 1e-6, *, precision="highest") -> jax.Array:
    """The polar factor by matrix products alone: no decomposition, differentiable, and the same on every backend.

    Args:
      x: matrices (..., m, n), floating, of any size that the dtype holds; half precision computes in float32. Zero
        gives zero. A matrix with an entry that is not finite gives NaN, and leaves the others alone.
      smallest: singular values of at least smallest |x|_F become 1 to a few roundings, smaller ones something between 0
        and 1; in (0, 1). Factors of 10 cost about five thirds of a step more; 1e-6 takes 13 in float64.
      precision: that of the products.

    Returns:
      Matrices like `x`.

    Raises:
      ValueError: x is no matrix, or `smallest` is outside (0, 1).
      TypeError: x is not real floating.

    Example:
      >>> print(polar_by_products(jnp.array([[0.0, -3.0, 0.0], [2.0, 0.0, 0.0]])).round(3) + 0)
      [[ 0. -1.  0.]
       [ 1.  0.  0.]]
    """
    check_matrices("polar_by_products", "x", x)
    if not 0 < smallest < 1:
        raise ValueError(f"polar_by_products: `smallest` must lie in (0, 1), a share of |x|_F; got {smallest!r}.")
    dtype = wide(x.dtype)
    table = _complete(float(smallest), float(jnp.finfo(dtype).eps))
    return newton_schulz(x, len(table), table, compute_dtype=dtype, precision=precision)


@functools.lru_cache
def _complete(smallest: float, eps: float) -> Table:
    """The shortest schedule that brings [smallest, 1] to 1 within rounding, also of the bounds."""
    for steps in range(1, 100):
        table = polar_express(steps, smallest, safety=_SAFETY)
        low, high = singular_value_range(table, smallest, 1.0)
        if max(1 - low, high - 1) < max(eps, 1e-13):
            return table
    raise ValueError(f"polar_by_products: `smallest` is too small for float64; got {smallest!r}.")
