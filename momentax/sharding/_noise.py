"""Random bits that are a function of the place of an entry alone: no shard asks another."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def entry_numbers(shape: Sequence[int], out_sharding: Any = None) -> jax.Array:
    """The number of each entry of an array, modulo 2^32: an iota, where a constant would be large."""
    number = jnp.uint32(0)
    for axis, size in enumerate(shape):
        entry = jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=out_sharding)
        number = number * np.uint32(size) + entry
    return number


def noise(numbers: Any, words: jax.Array) -> jax.Array:
    """32 random bits for each number; `words` are two that make them others."""
    return _mix(_mix(numbers ^ words[0]) + words[1])


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit numbers whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
