"""The largest singular value and its vectors, by power iteration.

    u <- X v / |X v|,  v <- X' u / |X' u|                   (1)
    sigma = u' X v                                          (2)

The error of v falls by (sigma_2 / sigma_1)^2 a step, that of sigma by its square. sigma is never above sigma_1.

Source: Golub & Van Loan, Matrix Computations, section 7.3; with a start kept between calls as in Miyato et al.,
Spectral Normalization for Generative Adversarial Networks, ICLR 2018, arXiv 1802.05957.
"""

import jax
import jax.numpy as jnp

from momentax.linalg._products import check_matrices, product, wide
from momentax.linalg._schedules import check_steps
from momentax.varying import vary_as


def power_iteration(
    x: jax.Array, steps: int, start: jax.Array | None = None, *, precision="highest"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """sigma, u and v after `steps` steps (1): the largest singular value of each matrix and its vectors, of length 1.

    The derivative of sigma takes u and v as constants, which is exact where they have converged; u and v have none.

    Args:
      x: matrices (..., m, n), floating, of any size that the dtype holds; half precision computes in float32. A zero
        matrix gives sigma = 0, u = 0 and v as it started. One with an entry that is not finite gives NaN for itself.
      steps: how many, 1 or more, each of two products with a vector.
      start: v of an earlier call, (..., n) or (n,); rows that are zero or not finite start as None does: with the
        same fixed numbers at every call.
      precision: that of the products.

    Returns:
      sigma (...), u (..., m) and v (..., n), float32 for half precision, else in the dtype of x.

    Raises:
      ValueError: x is no matrix or empty, `start` does not fit, or steps are below 1.
      TypeError: x is not real floating.

    Example:
      >>> sigma, u, v = power_iteration(jnp.array([[0.0, -3.0, 0.0], [2.0, 0.0, 0.0]]), 20)
      >>> print(f"{sigma:.3f}", abs(v).round(3))
      3.000 [0. 1. 0.]
    """
    check_steps("power_iteration", steps)
    check_matrices("power_iteration", "x", x)
    if not x.shape[-1] or not x.shape[-2]:
        raise ValueError(f"power_iteration: x must have entries; got shape {x.shape}.")
    dtype, shape = wide(x.dtype), (*x.shape[:-2], x.shape[-1])
    v = jnp.broadcast_to(_default_start(x.shape[-1], dtype), shape)
    if start is not None:
        if start.shape not in (shape, shape[-1:]):
            raise ValueError(f"power_iteration: `start` must have shape {shape}; got {start.shape}.")
        start = jnp.broadcast_to(start.astype(dtype), shape)
        usable = jnp.isfinite(start).all(-1, keepdims=True) & (start != 0).any(-1, keepdims=True)
        v = jnp.where(usable, start, v)
    x = x.astype(dtype)
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))
    x = x / jnp.where(peak == 0, jnp.ones_like(peak), peak)  # squares can neither overflow nor vanish
    fixed = jax.lax.stop_gradient(x)

    def times(x, v):
        return product(x, v[..., None], precision)[..., 0]

    def iterate(carry, _):
        u, v = carry
        u = _unit(times(fixed, v), jnp.zeros_like(u))
        return (u, _unit(times(fixed.mT, u), v)), None  # (1)

    # inside jax.shard_map a loop asks for one type of what goes in and comes out
    start_u, first = (vary_as(part, x, v) for part in (jnp.zeros(x.shape[:-1], dtype), _unit(v, v)))
    (u, v), _ = jax.lax.scan(iterate, (start_u, jax.lax.stop_gradient(first)), length=steps)
    sigma = jnp.sum(u * times(x, v), axis=-1) * peak[..., 0, 0]  # (2)
    return sigma, u, v


def _default_start(size: int, dtype) -> jax.Array:
    """j^2 / golden ratio, modulo 1, over [-1, 1): in step with no pattern that the rows of a matrix may have."""
    j = jnp.arange(1, size + 1, dtype=jnp.uint32)
    return (j * j * jnp.uint32(2654435769)).astype(dtype) / 2.0**31 - 1


def _unit(v: jax.Array, otherwise: jax.Array) -> jax.Array:
    """v at length 1, or `otherwise` where it is zero."""
    largest = jnp.max(jnp.abs(v), axis=-1, keepdims=True)
    v = v / jnp.where(largest == 0, jnp.ones_like(largest), largest)
    norm = jnp.sqrt(jnp.sum(v * v, axis=-1, keepdims=True))
    return jnp.where(largest == 0, otherwise, v / jnp.where(norm == 0, jnp.ones_like(norm), norm))
