"""Inverse roots A^(-1/p) of symmetric positive semidefinite matrices.

    A = V diag(w) V',  A^(-1/p) = V diag(max(w, floor max w)^(-1/p)) V'                             (1)  "eigh"

    z = (1 + p) / (2 |B|_F),  B = A + floor |A|_F I;   M_0 = z B,  X_0 = z^(1/p) I                  (2)  "newton"
    T = ((p + 1) I - M_j) / p;   X_{j+1} = X_j T,  M_{j+1} = T^p M_j                                (3)

X_j^p B = M_j throughout, and M_j goes to I: eigenvalues m of M_0 lie in (0, (1 + p) / 2], small ones grow by
((p + 1) / p)^p a step, and errors d near 1 become (p + 1) d^2 / (2 p).

Source: Guo & Higham, A Schur-Newton Method for the Matrix p-th Root and its Inverse, SIAM J. Matrix Anal. Appl. 2006;
as in Anil et al., Scalable Second Order Optimization for Deep Learning, arXiv 2002.09018.
Departure: products cannot floor single eigenvalues, so (2) adds the floor to all, in units of |A|_F; and never less
than rounding may have taken from them, since (3) diverges on negative ones.
"""

import math
import numbers

import jax
import jax.numpy as jnp

from momentax.linalg._products import check_matrices, product, store, wide
from momentax.linalg._schedules import check_steps


def inverse_root(
    a: jax.Array,
    root: int = 2,
    *,
    method: str = "eigh",
    floor: float = 1e-8,
    steps: int | None = None,
    precision="highest",
) -> jax.Array:
    """A^(-1/root) of symmetric positive semidefinite matrices.

    Zero gives zero. A matrix with an entry that is not finite gives NaN, and leaves the others alone.

    Args:
      a: matrices (..., m, m), floating; the symmetric part is taken. Half precision computes in float32.
      root: 1 is the inverse, 2 the inverse square root, and so on.
      method: "eigh" is (1); its derivative is not defined where eigenvalues coincide. "newton" is (2), (3): products
        alone, differentiable, for matrices whose negative eigenvalues are rounding.
      floor: share of the largest eigenvalue below which none counts, in [0, 1). 1e-8 is customary.
      steps: of (3); None takes as many as the floor needs.
      precision: that of the products.

    Returns:
      Matrices like `a`.

    Raises:
      ValueError: a is not square, an unknown method, or an impossible root, floor or number of steps.
      TypeError: a is not real floating.

    Example:
      >>> print(inverse_root(jnp.diag(jnp.array([4.0, 16.0]))))
      [[0.5  0.  ]
       [0.   0.25]]
    """
    _check(a, root, method, floor, steps)
    dtype = wide(a.dtype)
    b = a.astype(dtype)
    b = (b + b.mT) / 2
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(b), axis=(-2, -1), keepdims=True, initial=0.0))
    finite = jnp.isfinite(peak)
    scale = jnp.where(finite & (peak > 0), peak, jnp.ones_like(peak))
    b = jnp.where(finite, b / scale, jnp.zeros_like(b))
    if method == "eigh":
        factor = _eigh(b, root, floor, precision)
    else:
        floor = max(floor, 4 * float(jnp.finfo(dtype).eps), float(jnp.finfo(a.dtype).eps))
        factor = _newton(b, root, floor, steps, precision)
    return store(jnp.where(finite, factor * scale ** (-1 / root), jnp.full_like(factor, jnp.nan)), a.dtype)


def _eigh(a: jax.Array, root: int, floor: float, precision) -> jax.Array:
    w, v = jnp.linalg.eigh(a, symmetrize_input=False)
    largest = w[..., -1:]
    positive = largest > 0
    w = jnp.maximum(w, floor * largest)
    kept = positive & (w > 0)
    powers = jnp.where(kept, jnp.where(kept, w, jnp.ones_like(w)) ** (-1 / root), jnp.zeros_like(w))
    return product(v * powers[..., None, :], v.mT, precision)  # (1)


def _newton(a: jax.Array, root: int, floor: float, steps: int | None, precision) -> jax.Array:
    size = a.shape[-1]
    if steps is None:  # what the smallest eigenvalue needs to come near 1, and the last digits
        steps = math.ceil(math.log(2 * (size**0.5 + floor) / floor) / (root * math.log1p(1 / root))) + 6
    eye = jnp.broadcast_to(jnp.eye(size, dtype=a.dtype), a.shape)
    squares = jnp.sum(a * a, axis=(-2, -1), keepdims=True)
    zero = squares == 0
    b = jnp.where(zero, eye, a + floor * jnp.sqrt(jnp.where(zero, jnp.ones_like(squares), squares)) * eye)
    z = (1 + root) / (2 * jnp.sqrt(jnp.sum(b * b, axis=(-2, -1), keepdims=True)))  # (2)

    def iterate(carry, _):
        x, m = carry
        t = ((root + 1) * eye - m) / root
        return (product(x, t, precision), product(_power(t, root, precision), m, precision)), None  # (3)

    (x, _), _ = jax.lax.scan(iterate, (z ** (1 / root) * eye, z * b), length=steps)
    return jnp.where(zero, jnp.zeros_like(x), x)


def _power(t: jax.Array, exponent: int, precision) -> jax.Array:
    if exponent == 1:
        return t
    half = _power(t, exponent // 2, precision)
    square = product(half, half, precision)
    return product(square, t, precision) if exponent % 2 else square


def _check(a: jax.Array, root: int, method: str, floor: float, steps: int | None) -> None:
    check_matrices("inverse_root", "a", a)
    if a.shape[-1] != a.shape[-2] or not a.shape[-1]:
        raise ValueError(f"inverse_root: a must be square matrices (..., m, m), m >= 1; got shape {a.shape}.")
    if isinstance(root, bool) or not isinstance(root, numbers.Integral) or root < 1:
        raise ValueError(f"inverse_root: `root` must be a Python integer of 1 or more; got {root!r}.")
    if method not in ("eigh", "newton"):
        raise ValueError(f"inverse_root: `method` must be one of 'eigh', 'newton'; got {method!r}.")
    if not 0 <= floor < 1:
        raise ValueError(f"inverse_root: `floor` must lie in [0, 1), a share of the largest eigenvalue; got {floor!r}.")
    if steps is not None:
        check_steps("inverse_root", steps)
