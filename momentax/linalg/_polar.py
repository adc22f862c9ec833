"""The polar factor of a matrix, exactly."""

import jax
import jax.numpy as jnp


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
