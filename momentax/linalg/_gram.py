"""Newton-Schulz on the Gram matrix: X_T = Q X_0, with all of the iteration in m x m matrices.

    R = X X'                                                (1)  `gram`
    Z = b R + c R^2,  Q <- Q (a I + Z),  starting at I      (2)  `polynomial`, for each row (a, b, c)
    R <- (a I + Z) R (a I + Z)                              (3)  between rows
    X <- Q X                                                (4)  `apply`

With X sharded along n only (1) needs a reduction, which may stand between `gram` and `polynomial`. T steps with one
restart, (1) to (4) twice, take 8 m^2 n + (8 T - 12) m^3 operations where the standard form takes T (4 m^2 n + 2 m^3);
each further restart takes 4 m^2 n - 6 m^3 more.
Rounding errors of R grow with the polynomial, hence the restart: at most two rows at a time before small singular
values are lifted, and float32 or better for (2) and (3).

Source: Dao-AILab/gram-newton-schulz.
Departure: float32 for the m x m matrices, where the code has float16.
"""

import jax
import jax.numpy as jnp

from momentax.linalg._products import product, store, wide
from momentax.linalg._schedules import Table


def gram(x: jax.Array, precision="highest") -> jax.Array:
    """X X' (1) of matrices (..., m, n): (..., m, m), in float32 for half precision, else in the dtype of x.

    Example:
      >>> print(gram(jnp.array([[3.0, 4.0]])))
      [[25.]]
    """
    return product(x, x.mT, precision)


def polynomial(r: jax.Array, table: Table, precision="highest") -> jax.Array:
    """Q (2): with R = X X', the steps of the rows of `table` take X to Q X.

    Args:
      r: symmetric matrices (..., m, m), float32 or float64.
      table: rows (a, b, c, ...) as from `coefficients`, one or more.
      precision: that of the products.

    Returns:
      Matrices like `r`.

    Example:
      >>> print(polynomial(jnp.array([[4.0]]), ((1.5, -0.5),)))
      [[-0.5]]
    """
    q = jnp.broadcast_to(jnp.eye(r.shape[-1], dtype=r.dtype), r.shape)
    for i, (a, *row) in enumerate(table):
        z = row[-1] * r
        for c in row[-2::-1]:
            z = c * r + product(z, r, precision)
        q = a * q + (z if i == 0 else product(q, z, precision))  # (2)
        if i + 1 < len(table):
            r = a * r + product(r, z, precision)
            r = a * r + product(z, r, precision)  # (3)
    return q


def apply(q: jax.Array, x: jax.Array, precision="highest") -> jax.Array:
    """Q X (4), like x: (..., m, m) by (..., m, n). Half precision multiplies in half precision, sums in float32.

    Example:
      >>> print(apply(jnp.array([[-0.5]]), jnp.array([[2.0, 4.0]])))
      [[-1. -2.]]
    """
    return store(product(store(q.astype(wide(x.dtype)), x.dtype), x, precision), x.dtype)
