"""The polar factor of a matrix by matrix products alone.

    X_0     = X / |X|_F                                                 (1)
    X_{j+1} = (15 X_j - 10 (X_j X_j') X_j + 3 (X_j X_j')^2 X_j) / 8     (2)

(2) maps each singular value s to p(s) = (15 s - 10 s^3 + 3 s^5) / 8 and leaves the singular vectors alone. On [0, 1]
p rises from 0 to 1, with slope 15/8 at 0 and p' = p'' = 0 at 1: no singular value ever exceeds 1, near 1 the error
d becomes 2.5 d^3, and small ones grow by 15/8 a step. After N steps those far below (8/15)^N |X|_F are still about
(15/8)^N s / |X|_F, where the polar factor has 1.

Source: Schulz, Iterative Berechnung der reziproken Matrix, ZAMM 1933; the member of degree 5 of the Pade family of
Kenney & Laub, Rational Iterative Methods for the Matrix Sign Function, SIAM J. Matrix Anal. Appl. 1991.
"""

import jax
import jax.numpy as jnp


def newton_schulz(x: jax.Array, steps: int) -> jax.Array:
    """The polar factor after `steps` iterations (2), with singular values in [0, 1].

    Args:
      x: matrices (..., m, n), floating, of any size that the dtype holds; zero gives zero. A matrix with an entry that
        is not finite gives NaN, and leaves the others alone.
      steps: iterations, each of three products, computed in the full precision of the dtype.

    Returns:
      Matrices like `x`.

    Example:
      >>> print(newton_schulz(jnp.array([[0.0, -3.0, 0.0], [2.0, 0.0, 0.0]]), steps=5).round(3) + 0)
      [[ 0. -1.  0.]
       [ 1.  0.  0.]]
    """
    if x.shape[-2] > x.shape[-1]:  # the products X X' are then the small ones
        return newton_schulz(x.mT, steps).mT
    peak = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    x = x / jnp.where(peak == 0, jnp.ones_like(peak), peak)  # squares of the largest entry cannot overflow or vanish
    x = x / jnp.maximum(jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True)), 1)  # (1)

    def iterate(_, x):
        gram = jnp.matmul(x, x.mT, precision="highest")
        quartic = 3 * jnp.matmul(gram, gram, precision="highest") - 10 * gram
        return (15 * x + jnp.matmul(quartic, x, precision="highest")) / 8  # (2)

    return jax.lax.fori_loop(0, steps, iterate, x)
