"""Choosing some entries of an array at random, as many of every few along one axis, so that shards are independent."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from momentax.sharding._carry import carry
from momentax.sharding._noise import entry_numbers, noise
from momentax.sharding._specs import axes_of

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
        words = jax.random.bits(key, (2,), jnp.uint32)
        places = carry(functools.partial(_draw, self), like, words, places=[self._place(like)])[0]
        lies = getattr(like, "sharding", None)
        if isinstance(like, jax.core.Tracer) or not isinstance(lies, NamedSharding):
            return places
        spec = PartitionSpec(*lies.spec, *[None] * (like.ndim - len(lies.spec)))  # not compiled: nothing else places it
        return jax.device_put(places, NamedSharding(lies.mesh, self._place(like, lies.mesh)(spec)))

    def gather(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """The chosen entries of x; zero where there is none."""
        return carry(functools.partial(_gather, self), x, places, places=[self._place(x)])[0]

    def scatter(self, chosen: jax.Array, places: jax.Array, like: jax.Array) -> jax.Array:
        """The array, lying as `like`, that has these entries and is zero elsewhere."""
        return carry(functools.partial(_scatter, self), like, chosen, places, places=[lambda spec: spec])[0]

    def _along_axis(self, *sizes: int) -> tuple[int, ...]:
        return (*self.shape[: self.axis], *sizes, *self.shape[self.axis + 1 :])

    def _split(self, x: jax.Array, size: int) -> jax.Array:
        """x with its axis as (strata, entries of a stratum)."""
        return x.reshape(self._along_axis(x.shape[self.axis] // size, size))

    def _hits(self, places: jax.Array) -> jax.Array:
        """Whether a place is that of an entry: (..., strata, places, entries, ...)."""
        places = jnp.expand_dims(self._split(places, self.capacity), self.axis + 2)
        entry = np.arange(self.size, dtype=np.int32)
        return places == entry.reshape(-1, *[1] * (len(self.shape) - self.axis - 1))[(None,) * (self.axis + 2)]

    def _place(self, x: jax.Array, mesh: Any = None) -> Any:
        """Where chosen entries lie: as the array, but whole along an axis whose shards would cut strata."""
        mesh = mesh or jax.typeof(x).sharding.mesh

        def place(spec):
            names = axes_of(spec[self.axis])
            cut = self.shape[self.axis] // self.size % math.prod(mesh.shape[name] for name in names)
            return PartitionSpec(*[None if cut and axis == self.axis else part for axis, part in enumerate(spec)])

        return place


# Compiled also where a user's `init` is not: one by one, their steps would take many times the memory of the array.
@functools.partial(jax.jit, static_argnums=0)
def _draw(strata: Strata, _: jax.Array, words: jax.Array) -> tuple[jax.Array]:
    across = strata.shape[strata.axis] // strata.size
    shape = strata._along_axis(across, 1)
    number = entry_numbers(shape)

    def keys(step):
        return noise(number * np.uint32(2 * ROUNDS) + np.uint32(step), words)

    most = strata.kept - (strata.capacity - 1) * strata.number  # strata that give `capacity` entries
    turned = (number + noise(np.uint32(2**32 - 1), words) % np.uint32(strata.number)) % np.uint32(strata.number)
    here = jnp.where(turned < most, np.uint32(strata.capacity), np.uint32(strata.capacity - 1))
    slot = jax.lax.broadcasted_iota(jnp.uint32, strata._along_axis(across, strata.capacity), strata.axis + 1)
    places = jnp.where(slot < here, _permute(slot, keys, strata.size), np.uint32(strata.size)).astype(jnp.int32)
    return (places.reshape(strata.chosen_shape),)


@functools.partial(jax.jit, static_argnums=0)
def _gather(strata: Strata, x: jax.Array, places: jax.Array) -> tuple[jax.Array]:
    entries = jnp.where(strata._hits(places), jnp.expand_dims(strata._split(x, strata.size), strata.axis + 1), 0)
    return (jnp.sum(entries, strata.axis + 2, dtype=x.dtype).reshape(strata.chosen_shape),)


@functools.partial(jax.jit, static_argnums=0)
def _scatter(strata: Strata, _: jax.Array, chosen: jax.Array, places: jax.Array) -> tuple[jax.Array]:
    rows = jnp.expand_dims(strata._split(chosen, strata.capacity), strata.axis + 2)
    entries = jnp.where(strata._hits(places), rows, 0)
    return (jnp.sum(entries, strata.axis + 1, dtype=chosen.dtype).reshape(strata.shape),)


def _permute(x: jax.Array, keys: Callable[[int], jax.Array], size: int) -> jax.Array:
    """A permutation of 0 .. size - 1, random by its keys, entry by entry.

    It permutes the numbers below the next power of two by invertible steps, and goes on from those not below `size`
    until it meets one that is: at the latest when it has met all the others.
    """
    bits = max(1, (size - 1).bit_length())
    below = np.uint32(2**bits - 1)
    steps = [(keys(2 * round_), keys(2 * round_ + 1) | np.uint32(1)) for round_ in range(ROUNDS)]

    def once(x):
        for shift, factor in steps:
            x = (x + shift) * factor & below
            x = x ^ (x >> np.uint32((bits + 1) // 2))
        return (x + steps[0][1]) & below

    return jax.lax.fori_loop(0, 2**bits - size, lambda _, x: jnp.where(x >= size, once(x), x), once(x))


def divide(shape: tuple[int, ...], density: float, shards: int) -> Strata:
    """Strata for an array of which floor(density * size) entries are chosen.

    Of the axes and the sizes that divide them: sizes that give `MANY` entries or fewer; of these, buffers with less
    than 10 % to spare; then another axis than the last, which lies along the lanes of a TPU and counts the outputs of
    most layers; then less than 5 % to spare; then strata that no shard cuts; then the size nearest to 8 chosen entries.
    An axis that has no such divisor is one stratum.

    Args:
      shape: of the array, of rank 1 or more.
      density: in (0, 1].
      shards: devices over which an axis may be sharded; strata then lie inside shards where the other wishes allow it.

    >>> divide((4096, 1024), 0.25, 16)
    Strata(shape=(4096, 1024), axis=0, size=32, kept=1048576)
    >>> divide((16, 10), 0.3, 1).chosen_shape
    (5, 10)
    """
    kept = math.floor(density * math.prod(shape))

    def price(axis, size):
        strata = Strata(shape, axis, size, kept)
        unused = strata.capacity * strata.number / kept
        cut = shape[axis] // math.gcd(shape[axis], shards) % size != 0
        few = abs(density * size - MANY / 2)
        return density * size > MANY, unused > 1.1, axis == len(shape) - 1, unused > 1.05, cut, few, axis, size

    options = [(axis, length) for axis, length in enumerate(shape)]
    for axis, length in enumerate(shape):
        small = range(math.ceil(1 / density), min(length, int(MANY / density)) + 1)
        options += [(axis, size) for size in small if length % size == 0]
    axis, size = min(options, key=lambda option: price(*option))
    return Strata(shape, axis, size, kept)
