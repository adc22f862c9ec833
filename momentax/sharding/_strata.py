"""Choosing some entries of an array at random, as many of every few along one axis, so that shards are independent."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from momentax.sharding._carry import carry

MANY = 16  # entries chosen of a stratum, at most: each costs a comparison with every entry of the stratum
ROUNDS = 4  # of mixing in a permutation


@dataclasses.dataclass(frozen=True)
class Strata:
    """An array divided along one axis into strata of `size` entries, of which `kept` in all are chosen.

    Every stratum gives the same number, or one more. Chosen entries are an array like the whole one, shorter along the
    axis: in place of `size` entries it has `capacity`. Their places are int32 numbers inside a stratum; `size` itself
    stands for none. Entries are moved by comparing places, `capacity` comparisons for each entry of the array, and not
    by gathers, which take a tile of memory for every entry on a TPU.

    Attributes:
      shape: of the array, of rank 1 or more.
      axis: which is divided.
      size: of a stratum, a divisor of the axis' length.
      kept: entries that are chosen.
    """

    shape: tuple[int, ...]
    axis: int
    size: int
    kept: int

    @property
    def number(self) -> int:
        """How many strata there are."""
        return math.prod(self.shape) // self.size

    @property
    def capacity(self) -> int:
        """Entries chosen of the fullest stratum."""
        return -(-self.kept // self.number)

    @property
    def chosen_shape(self) -> tuple[int, ...]:
        """Shape of the chosen entries."""
        return self._along_axis(self.shape[self.axis] // self.size * self.capacity)

    def draw(self, key: jax.Array, like: jax.Array) -> jax.Array:
        """The places of a random choice, uniform over the entries of a stratum, lying as `like`.

        They are the first values of a random permutation of each stratum; which strata give one entry more is random.
        """

        def draw(like, key):
            mixing, turn = jax.random.split(key)
            strata = self._along_axis(self.shape[self.axis] // self.size, 1)
            keys = jax.random.bits(mixing, (ROUNDS, 2, *strata), jnp.uint32)
            slots = self._along_axis(self.shape[self.axis] // self.size, self.capacity)
            slot = jax.lax.broadcasted_iota(jnp.uint32, slots, self.axis + 1)
            full = self.kept - (self.capacity - 1) * self.number  # strata that give the most
            offset = jax.random.randint(turn, (), 0, self.number, jnp.int32)
            rank = jnp.zeros(strata, jnp.int32)
            for axis, size in enumerate(strata):  # the stratum's number: an iota, where a constant would be large
                rank = rank * size + jax.lax.broadcasted_iota(jnp.int32, strata, axis)
            here = jnp.where(
                (rank + offset) % self.number < full, np.uint32(self.capacity), np.uint32(self.capacity - 1)
            )
            places = jnp.where(slot < here, _permute(slot, keys, self.size), np.uint32(self.size)).astype(jnp.int32)
            first = self._split(like, self.size)[self._first()]
            return (
                (places + jnp.zeros_like(first, jnp.int32)).reshape(self.chosen_shape),
            )  # outside jit it lies there

        return carry(draw, like, key, places=[self._place(like)])[0]

    def gather(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """The chosen entries of x; zero where there is none."""

        def gather(x, places):
            entries = jnp.where(self._hits(places), jnp.expand_dims(self._split(x, self.size), self.axis + 1), 0)
            return (jnp.sum(entries, self.axis + 2, dtype=x.dtype).reshape(self.chosen_shape),)

        return carry(gather, x, places, places=[self._place(x)])[0]

    def scatter(self, chosen: jax.Array, places: jax.Array, like: jax.Array) -> jax.Array:
        """The array, lying as `like`, that has these entries and is zero elsewhere."""

        def scatter(_, chosen, places):
            entries = jnp.where(
                self._hits(places), jnp.expand_dims(self._split(chosen, self.capacity), self.axis + 2), 0
            )
            return (jnp.sum(entries, self.axis + 1, dtype=chosen.dtype).reshape(self.shape),)

        return carry(scatter, like, chosen, places, places=[lambda spec: spec])[0]

    def _along_axis(self, *sizes: int) -> tuple[int, ...]:
        return (*self.shape[: self.axis], *sizes, *self.shape[self.axis + 1 :])

    def _first(self) -> tuple[Any, ...]:
        return (*[slice(None)] * (self.axis + 1), slice(0, 1))

    def _split(self, x: jax.Array, size: int) -> jax.Array:
        """x with its axis as (strata, entries of a stratum)."""
        return x.reshape(self._along_axis(x.shape[self.axis] // size, size))

    def _hits(self, places: jax.Array) -> jax.Array:
        """Whether a place is that of an entry: (..., strata, places, entries, ...)."""
        places = jnp.expand_dims(self._split(places, self.capacity), self.axis + 2)
        entry = np.arange(self.size, dtype=np.int32)
        return places == entry.reshape(-1, *[1] * (len(self.shape) - self.axis - 1))[(None,) * (self.axis + 2)]

    def _place(self, x: jax.Array) -> Any:
        """Where chosen entries lie: as the array, but whole along an axis whose shards would cut strata."""
        mesh = jax.typeof(x).sharding.mesh

        def place(spec):
            names = spec[self.axis]
            names = () if names is None else (names,) if isinstance(names, str) else names
            cut = self.shape[self.axis] // self.size % math.prod(mesh.shape[name] for name in names)
            return PartitionSpec(*[None if cut and axis == self.axis else part for axis, part in enumerate(spec)])

        return place


def _permute(x: jax.Array, keys: jax.Array, size: int) -> jax.Array:
    """A permutation of 0 .. size - 1, random by its keys, entry by entry.

    It permutes the numbers below the next power of two by invertible steps, and goes on from those not below `size`
    until it meets one that is: at the latest when it has met all the others.
    """
    bits = max(1, (size - 1).bit_length())
    below = np.uint32(2**bits - 1)

    def once(x):
        for shift, factor in keys:
            x = (x + shift) * (factor | np.uint32(1)) & below
            x = x ^ (x >> np.uint32((bits + 1) // 2))
        return (x + keys[0, 1]) & below

    return jax.lax.fori_loop(0, 2**bits - size, lambda _, x: jnp.where(x >= size, once(x), x), once(x))


def divide(shape: tuple[int, ...], density: float, shards: int) -> Strata:
    """Strata for an array of which floor(density * size) entries are chosen.

    Of the axes and of the sizes that divide them, those with the least unused capacity; then another axis than the
    last, which lies along the lanes of a TPU; then the size nearest to 8 chosen entries.

    Args:
      shape: of the array, of rank 1 or more.
      density: in (0, 1].
      shards: devices over which an axis may be sharded without cutting strata, unless its part on each is too short to
        give an entry.

    >>> divide((4096, 1024), 0.25, 16)
    Strata(shape=(4096, 1024), axis=0, size=32, kept=1048576)
    >>> divide((16, 10), 0.3, 1).chosen_shape
    (5, 10)
    """
    kept = math.floor(density * math.prod(shape))

    def sizes(axis):
        length = shape[axis]
        for part in (length // math.gcd(length, shards), length):
            found = [size for size in range(1, part + 1) if part % size == 0 and 1 <= density * size <= MANY]
            if found:
                return found
        return [length]

    def price(option):
        axis, size = option
        strata = Strata(shape, axis, size, kept)
        unused = strata.capacity * strata.number / kept
        return round(unused, 2), axis == len(shape) - 1, abs(density * size - MANY / 2), axis

    return Strata(shape, *min(((axis, size) for axis in range(len(shape)) for size in sizes(axis)), key=price), kept)
