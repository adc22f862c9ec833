"""Choosing, gathering and scattering some entries of an array block by block, so that shards are independent."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from momentax.sharding._carry import carry

SMALLEST_BLOCK = 64  # entries: below, a block would leave little to chance
_ROUNDS = 3  # of mixing in a permutation


@dataclasses.dataclass(frozen=True)
class Blocks:
    """An array divided into equal blocks, of which `kept` entries are chosen: as many of each block, or one more.

    Chosen entries have the axes of the array, counting blocks, and one more for the entries of a block: shape
    (*grid, capacity). Their places are int32 numbers inside a block; the block's size stands for no entry.

    Attributes:
      shape: of the array.
      grid: number of blocks along each axis, dividing its length.
      kept: entries that are chosen.
    """

    shape: tuple[int, ...]
    grid: tuple[int, ...]
    kept: int

    @property
    def block(self) -> tuple[int, ...]:
        """Shape of a block; that of a scalar is (1,)."""
        return tuple(length // count for length, count in zip(self.shape, self.grid, strict=True)) or (1,)

    @property
    def capacity(self) -> int:
        """Entries chosen of the fullest block."""
        return -(-self.kept // math.prod(self.grid))

    def draw(self, key: jax.Array, like: jax.Array) -> jax.Array:
        """The places of a random choice, uniform over the entries of a block, lying as the blocks of `like`.

        They are the first values of a random permutation of the block's entries, computed one by one: sorting random
        numbers would need several times the memory of the array.
        """

        def draw(like, key):
            keys = jax.random.bits(key, (_ROUNDS, 2, *self.grid, 1))
            size = math.prod(self.block)
            full = self.kept - (self.capacity - 1) * math.prod(self.grid)  # blocks, the first ones, that give the most
            number = np.arange(math.prod(self.grid)).reshape(*self.grid, 1)
            here = np.where(number < full, self.capacity, self.capacity - 1).astype(np.int32)
            slot = jax.lax.broadcasted_iota(jnp.int32, (*self.grid, self.capacity), len(self.grid))
            places = jnp.where(slot < here, _permute(slot, keys, size), size)
            corners = self._cut(like)[(slice(None), 0) * like.ndim][..., None]
            follow = jnp.zeros_like(corners, places.dtype)  # outside jit, places lie where this does
            return (places + follow,)

        return carry(draw, like, key, places=[self._place(like)])[0]

    def gather(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """The chosen entries of x; zero where there is none."""

        def gather(x, places):
            entries = self._each_block(lambda b, i: b.at[self._position(i)].get(mode="clip"), True)(
                self._cut(x), places
            )
            return (jnp.where(places < math.prod(self.block), entries, jnp.zeros_like(entries)),)

        return carry(gather, x, places, places=[self._place(x)])[0]

    def scatter(self, chosen: jax.Array, places: jax.Array, like: jax.Array) -> jax.Array:
        """The array, lying as `like`, that has these entries and is zero elsewhere."""

        def scatter(_, chosen, places):
            zeros = jnp.zeros(self.block, chosen.dtype)
            put = lambda u, i: zeros.at[self._position(i)].set(u, mode="drop", unique_indices=True)  # noqa: E731
            return (self._each_block(put, False)(chosen, places).reshape(self.shape),)

        return carry(scatter, like, chosen, places, places=[lambda spec: spec])[0]

    def _each_block(self, function, from_array: bool):
        """The function over all blocks, as batch axes of one gather or scatter, which is what keeps it local.

        `_cut` puts the axes that count blocks between those of a block, at 0, 2, 4, ...; the outer maps take away those
        before, so that the next one stands at 0, 1, 2, ...
        """
        for axis in reversed(range(len(self.grid))):
            function = jax.vmap(function, in_axes=(axis, 0) if from_array else 0, out_axes=0 if from_array else axis)
        return function

    def _cut(self, x: jax.Array) -> jax.Array:
        """(n, m) -> (blocks of n, rows of a block, blocks of m, columns of a block)."""
        return x.reshape([size for pair in zip(self.grid, self.block, strict=True) for size in pair] if x.ndim else [1])

    def _position(self, places: jax.Array) -> tuple[jax.Array, ...]:
        """Numbers inside a block as coordinates; the first leaves the block where the number does."""
        coordinates = []
        for size in reversed(self.block[1:]):
            coordinates.append(places % size)
            places = places // size
        return (places, *reversed(coordinates))

    def _place(self, x: jax.Array) -> Any:
        """Where chosen entries lie: as the array, but whole along an axis whose shards would cut blocks."""
        mesh = jax.typeof(x).sharding.mesh

        def place(spec):
            def shards(names):
                return math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))

            parts = [
                names if names is not None and blocks % shards(names) == 0 else None
                for names, blocks in zip(spec, self.grid, strict=True)
            ]
            return PartitionSpec(*parts, None)

        return place


def _permute(x: jax.Array, keys: jax.Array, size: int) -> jax.Array:
    """A permutation of 0 .. size - 1, random by its keys, entry by entry.

    It permutes the numbers below the next power of two by invertible steps, and goes on from those not below `size`
    until it meets one that is.
    """
    bits = max(1, (size - 1).bit_length())
    below = np.uint32(2**bits - 1)

    def once(x):
        for shift, factor in keys:
            x = (x + shift) * (factor | np.uint32(1)) & below
            x = x ^ (x >> (bits + 1) // 2)
        return (x + keys[0, 1]) & below

    x = once(x.astype(jnp.uint32))
    if size < 2**bits:
        outside = lambda x: jnp.any(x >= size)  # noqa: E731
        x = jax.lax.while_loop(outside, lambda x: jnp.where(x >= size, once(x), x), x)
    return x.astype(jnp.int32)


def divide(shape: tuple[int, ...], kept: int, most: int) -> Blocks:
    """Blocks for an array: along each axis a power of two of them, `most` or fewer, each of SMALLEST_BLOCK or more.

    >>> divide((4096, 1024), 1_000_000, 64).grid
    (64, 64)
    >>> divide((16, 10), 40, 64).block
    (8, 10)
    """
    grid, block = [1] * len(shape), list(shape)
    while math.prod(block) >= 2 * SMALLEST_BLOCK:
        axes = [axis for axis in range(len(shape)) if block[axis] % 2 == 0 and grid[axis] < most]
        if not axes:
            break
        axis = max(axes, key=lambda axis: block[axis])
        grid[axis], block[axis] = 2 * grid[axis], block[axis] // 2
    return Blocks(tuple(shape), tuple(grid), kept)
