"""The polar factor of a matrix by matrix products alone: an odd polynomial of its singular values.

    X_0     = X / |X|_F, or another scaling                             (1)
    A       = X_j X_j'                                                  (2)
    X_{j+1} = a X_j + (b A + (c A) A) X_j                               (3)

(3) maps each singular value s to p(s) = a s + b s^3 + c s^5 and leaves the singular vectors alone; each step may have
coefficients of its own, and further ones for further powers of A. "classical", (15, -10, 3) / 8, rises from 0 to 1 on
[0, 1], with slope 15/8 at 0 and p' = p'' = 0 at 1: no singular value ever exceeds 1, near 1 the error d becomes
2.5 d^3, and small ones grow by 15/8 a step. After N steps those far below (8/15)^N |X|_F are still about
(15/8)^N s / |X|_F, where the polar factor has 1. The other tables lift small ones faster; `singular_value_range` tells
where they end.

The Gram form is (3) written for the m x m matrices alone, see `polynomial`: fewer operations where n > 1.5 m.

Source: Schulz, Iterative Berechnung der reziproken Matrix, ZAMM 1933; Bjorck & Bowie, An Iterative Algorithm for
Computing the Best Estimate of an Orthogonal Matrix, SIAM J. Numer. Anal. 1971; Jordan et al., Muon, 2024, whose order
of roundings half precision follows. Gram form: Dao-AILab/gram-newton-schulz.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from momentax.linalg._coefficients import coefficients as rows_of
from momentax.linalg._gram import apply, gram, polynomial
from momentax.linalg._normalize import NORMALIZATIONS
from momentax.linalg._normalize import normalize as normalized
from momentax.linalg._products import check_matrices, is_half, product, rounded, store, wide

FORMS = ("standard", "powers", "gram", "auto")
RESTART = 2  # steps before the Gram form computes X X' anew: rounding errors of R grow with the polynomial
SEGMENT = 3  # and after that: five steps have one restart, as in its source


def newton_schulz(
    x: jax.Array,
    steps: int,
    coefficients: str | Sequence = "classical",
    *,
    normalize: str | None = "frobenius",
    eps: float | None = None,
    safety: float = 1.0,
    form: str = "standard",
    compute_dtype=None,
    precision="highest",
) -> jax.Array:
    """The polar factor of x, as near as `steps` steps (3) bring it.

    Args:
      x: matrices (..., m, n), floating. Zero gives zero. A matrix with an entry that is not finite gives NaN, and
        leaves the others alone.
      steps: how many, 1 or more, each of three products.
      coefficients: name or rows, as in `coefficients`.
      normalize: (1): "frobenius", "schatten", "spectral" (needs eigenvalues), "aol" (converges to another matrix), or
        None for matrices whose singular values are in [0, 1] already.
      eps: added to the norm in (1), in units of x: 1e-7 in Muon's code, 1e-8 in Optax. None adds nothing: the result
        does not depend on the scale of x.
      safety: safety factor of the coefficients, as in `coefficients`.
      form: "standard" is (3); "powers" computes b A + c (A A), the order in which Dion's and MuonH's codes round;
        "gram" iterates on m x m matrices, in float32 or better; "auto" is "gram" where the long side exceeds 1.5 times
        the short and products are as exact as it needs: not in half precision, nor in float32 where accelerators round
        it to less (`precision`), which lets small singular values of Polar Express grow without bound.
      compute_dtype: dtype of stored matrices; None is that of x. In half precision products take half precision and
        sum in float32. float16 is normalised in float32 first.
      precision: that of the products, as in `jax.lax.Precision`. "highest" keeps accelerators from multiplying float32
        in less; None is JAX's default, one pass of bfloat16 on a TPU.

    Returns:
      Matrices like `x`.

    Raises:
      ValueError: x is no matrix, an unknown choice, or coefficients, steps or a safety factor that `coefficients`
        refuses.
      TypeError: x is not real floating.

    Example:
      >>> print(newton_schulz(jnp.array([[0.0, -3.0, 0.0], [2.0, 0.0, 0.0]]), steps=5).round(3) + 0)
      [[ 0. -1.  0.]
       [ 1.  0.  0.]]
    """
    table = rows_of(coefficients, steps, safety)
    check_matrices("newton_schulz", "x", x)
    for argument, value, choices in (("normalize", normalize, NORMALIZATIONS), ("form", form, FORMS)):
        if value not in choices:
            listed = ", ".join(map(repr, choices))
            raise ValueError(f"newton_schulz: `{argument}` must be one of {listed}; got {value!r}.")
    if not x.size:
        return x
    # X X' is to be the smaller of the two products. Squares are turned, too: in half precision they round as those of
    # the codes, whose weights are (out, in) where Flax has (in, out).
    if x.shape[-2] >= x.shape[-1]:
        return _iterate(x.mT, table, normalize, eps, form, compute_dtype, precision).mT
    return _iterate(x, table, normalize, eps, form, compute_dtype, precision)


def _iterate(x: jax.Array, table, normalize, eps, form, compute_dtype, precision) -> jax.Array:
    dtype = jnp.dtype(x.dtype if compute_dtype is None else compute_dtype)
    y, first = normalized(x, normalize, eps, dtype, precision)  # (1)

    def on_gram(y):
        r = gram(y, precision) if first is None else first
        y = apply(polynomial(r, table[:RESTART], precision), y, precision)
        for start in range(RESTART, len(table), SEGMENT):
            y = apply(polynomial(gram(y, precision), table[start : start + SEGMENT], precision), y, precision)
        return y

    def on_matrices(y):
        rows = np.asarray(table, wide(dtype))
        if first is not None:
            y, rows = _step(y, rows[0], form, precision, store(first, dtype)), rows[1:]
        return jax.lax.scan(lambda y, row: (_step(y, row, form, precision), None), y, rows)[0]

    if form == "gram":
        y = on_gram(y)
    elif form != "auto" or is_half(dtype) or x.shape[-1] <= 1.5 * x.shape[-2]:
        y = on_matrices(y)
    elif exact := _exact_on(dtype, precision):
        y = jax.lax.platform_dependent(y, default=on_matrices, **dict.fromkeys(exact, on_gram))
    else:
        y = on_gram(y)
    return y.astype(x.dtype)


def _exact_on(dtype, precision) -> tuple[str, ...]:
    """The platforms on which products of this precision are as exact as the Gram form needs; none means all."""
    precision = None if precision is None else str(precision).lower().removeprefix("precision.")
    if jnp.dtype(dtype).itemsize > 4 or precision not in (None, "default", "fastest", "high", "bfloat16_3x"):
        return ()
    return ("cpu", "tpu") if precision in ("high", "bfloat16_3x") else ("cpu",)  # three passes of bfloat16, or one


def _step(x: jax.Array, row, form: str, precision, a: jax.Array | None = None) -> jax.Array:
    def times(c, y):
        return rounded(c * y.astype(wide(y.dtype)), y.dtype)

    def multiply(b, y):
        return rounded(product(b, y, precision), y.dtype)

    a = store(product(x, x.mT, precision), x.dtype) if a is None else a  # (2)
    if form == "powers":
        power, b = a, times(row[1], a)
        for c in row[2:]:
            power = store(multiply(power, a), x.dtype)
            b = rounded(b + times(c, power), x.dtype)
        b = b.astype(x.dtype)
    else:
        b = times(row[-1], a).astype(x.dtype)
        for c in row[-2:0:-1]:
            b = store(times(c, a) + multiply(b, a), x.dtype)
    return store(times(row[0], x) + multiply(b, x), x.dtype)  # (3)
