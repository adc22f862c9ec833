"""Products of half precision that sum in float32, and roundings where they are written.

XLA may keep more than the precision asked for between operations that it fuses, and multiplies half precision in
float32 where the hardware has no such products. `lax.reduce_precision` is never left out.
"""

import jax
import jax.numpy as jnp


def is_half(dtype) -> bool:
    return jnp.dtype(dtype).itemsize < 4


def wide(dtype) -> jnp.dtype:
    """The dtype of sums and of what is not stored: float32 for half precision, else `dtype` itself."""
    return jnp.dtype(jnp.float32 if is_half(dtype) else dtype)


def rounded(x: jax.Array, dtype) -> jax.Array:
    """x with the values that `dtype` has, in its own dtype."""
    if not is_half(dtype):
        return x
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def store(x: jax.Array, dtype) -> jax.Array:
    return rounded(x, dtype).astype(dtype)


def product(a: jax.Array, b: jax.Array, precision) -> jax.Array:
    """a b, summed and returned in `wide` of their dtype."""
    return jnp.matmul(a, b, precision=precision, preferred_element_type=wide(a.dtype))


def check_matrices(function: str, argument: str, x: jax.Array) -> None:
    """Raises unless x is real floating and of rank 2 or more."""
    if jnp.ndim(x) < 2:
        raise ValueError(
            f"{function}: {argument} must be matrices, the last two axes; got shape {jnp.shape(x)}; reshape it."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{function}: {argument} must be real floating; got {x.dtype}; cast it.")
