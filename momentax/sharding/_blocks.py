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
        """Shape of a block."""
        return tuple(length // count for length, count in zip(self.shape, self.grid, strict=True))

    @property
    def capacity(self) -> int:
        """Entries chosen of the fullest block."""
        return -(-self.kept // math.prod(self.grid))

    def draw(self, key: jax.Array, like: jax.Array) -> jax.Array:
        """The places of a uniformly random choice, lying as the blocks of `like`."""

        def draw(like, key):
            bits = jax.random.bits(key, (*self.grid, math.prod(self.block)))
            places = jnp.argsort(bits, axis=-1)[..., : self.capacity].astype(jnp.int32)
            full = self.kept - (self.capacity - 1) * math.prod(self.grid)  # blocks, the first ones, that give the most
            number = np.arange(math.prod(self.grid)).reshape(*self.grid, 1)
            here = np.where(number < full, self.capacity, self.capacity - 1).astype(np.int32)
            slot = jax.lax.broadcasted_iota(jnp.int32, places.shape, len(self.grid))
            places = jnp.where(slot < here, places, math.prod(self.block))
            follow = jnp.zeros_like(self._cut(like)[..., :1], places.dtype)  # outside jit, places lie where this does
            return (jnp.sort(places, axis=-1) + follow,)

        return carry(draw, like, key, places=[self._place(like)])[0]

    def gather(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """The chosen entries of x; zero where there is none."""

        def gather(x, places):
            return (self._each_block(lambda b, i: b.at[i].get(mode="fill", fill_value=0))(self._cut(x), places),)

        return carry(gather, x, places, places=[self._place(x)])[0]

    def scatter(self, chosen: jax.Array, places: jax.Array, like: jax.Array) -> jax.Array:
        """The array, lying as `like`, that has these entries and is zero elsewhere."""

        def scatter(like, chosen, places):
            zeros = jnp.zeros(math.prod(self.block), chosen.dtype)
            put = self._each_block(lambda u, i: zeros.at[i].set(u, mode="drop", unique_indices=True))
            return (self._join(put(chosen, places)),)

        return carry(scatter, like, chosen, places, places=[lambda spec: spec])[0]

    def _each_block(self, function):
        for _ in self.grid:  # as batch axes of one gather or scatter, which is what keeps it local
            function = jax.vmap(function)
        return function

    def _cut(self, x: jax.Array) -> jax.Array:
        """(n, m) -> (blocks of n, blocks of m, entries of a block)."""
        rank = len(self.grid)
        split = x.reshape([size for pair in zip(self.grid, self.block, strict=True) for size in pair])
        return split.transpose(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)).reshape(*self.grid, -1)

    def _join(self, x: jax.Array) -> jax.Array:
        """What `_cut` cut."""
        rank = len(self.grid)
        split = x.reshape(*self.grid, *self.block)
        return split.transpose(
            [axis for pair in zip(range(rank), range(rank, 2 * rank), strict=True) for axis in pair]
        ).reshape(self.shape)

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
