"""Strata: how an array is divided, and that gathering and scattering undo one another."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from momentax.sharding import Strata, divide

SHAPES = [(128,), (97, 6), (1, 512), (48, 40), (4096, 1024), (2, 64, 64), (3, 5, 7, 2), (50257, 768), (32003, 64)]


@pytest.mark.parametrize("density", [1.0, 0.25, 0.1, 0.01])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_axis_is_divided_into_strata_of_a_few_chosen_entries(shape, density):
    strata = divide(shape, density, shards=16)
    assert strata.shape == shape and strata.kept == math.floor(density * math.prod(shape))
    assert shape[strata.axis] % strata.size == 0
    assert strata.number * strata.size == math.prod(shape)
    assert (strata.capacity - 1) * strata.number < strata.kept <= strata.capacity * strata.number
    assert math.prod(strata.chosen_shape) == strata.capacity * strata.number
    # moving an entry costs as many comparisons as a stratum gives entries, so these must be few wherever they can be
    possible = [size for length in shape for size in range(1, length + 1) if length % size == 0]
    assert strata.capacity <= 17 or not any(1 <= density * size <= 16 for size in possible)


@pytest.mark.parametrize("shape", [(1000, 1000), (100, 100), (300, 100), (768, 768)], ids=str)
def test_buffers_have_little_to_spare(shape):
    strata = divide(shape, 0.25, shards=16)
    assert math.prod(strata.chosen_shape) <= 1.05 * strata.kept


@pytest.mark.parametrize("density", [0.1, 0.2, 0.25, 0.3, 0.5])
def test_outputs_are_divided_last(density):
    assert divide((12, 64, 768), density, shards=16).axis == 1


@pytest.mark.parametrize("shape", [(4096, 1024), (768, 3072), (512, 8)], ids=str)
def test_shards_hold_whole_strata(shape):
    strata = divide(shape, 0.25, shards=16)
    assert shape[strata.axis] // 16 % strata.size == 0


@functools.partial(jax.jit, static_argnums=0)
def there_and_back(strata, x):
    places = strata.draw(jax.random.key(0), x)
    chosen = strata.gather(x, places)
    return places, chosen, strata.scatter(chosen, places, x)


@pytest.mark.parametrize(
    "strata",
    [
        Strata((7,), axis=0, size=7, kept=3),
        Strata((8, 12), axis=0, size=4, kept=48),  # each of 24 strata gives 2 of its 4 entries
        Strata((8, 12), axis=1, size=6, kept=37),  # 5 of 16 strata give one more
        Strata((4, 3, 6), axis=1, size=3, kept=5),  # 19 of 24 strata give none
        Strata((2, 4, 3, 2), axis=1, size=2, kept=48),  # all
    ],
    ids=str,
)
def test_scattering_undoes_gathering(strata):
    x = np.arange(1, 1 + math.prod(strata.shape), dtype=np.float32).reshape(strata.shape)
    x.flat[0], x.flat[1] = np.nan, np.inf  # these are moved alone
    places, chosen, back = map(np.asarray, there_and_back(strata, x))
    assert places.shape == chosen.shape == strata.chosen_shape and places.dtype == np.int32
    by_stratum, entries = (np.moveaxis(a, strata.axis, -1).reshape(strata.number, -1) for a in (places, x))
    given = np.sum(by_stratum < strata.size, axis=1)
    assert np.sum(given) == strata.kept
    assert set(given) <= {strata.capacity - 1, strata.capacity}
    assert np.all(by_stratum[by_stratum >= strata.size] == strata.size)  # the sign of no entry
    taken = np.take_along_axis(np.pad(entries, ((0, 0), (0, 1))), by_stratum, axis=1)
    np.testing.assert_array_equal(np.moveaxis(chosen, strata.axis, -1).reshape(strata.number, -1), taken)
    assert np.count_nonzero(back) == strata.kept  # no entry was chosen twice
    np.testing.assert_array_equal(back[back != 0], x[back != 0])


@pytest.mark.parametrize(
    ("shape", "density"),
    [((9, 9), 0.25), ((64, 8), 0.3), ((16, 32), 0.01)],
    ids=["strata of odd size", "several a column", "more strata than entries"],
)
def test_every_entry_is_chosen_equally_often(shape, density):
    strata, draws = divide(shape, density, shards=16), 3000
    keys, x = jax.random.split(jax.random.key(1), draws), jnp.ones(shape)
    chosen = jax.jit(jax.vmap(lambda key: strata.scatter(jnp.ones(strata.chosen_shape), strata.draw(key, x), x)))(keys)
    share = strata.kept / math.prod(shape)
    deviation = (np.sum(chosen, axis=0) - share * draws) / math.sqrt(draws * share * (1 - share))
    assert np.max(np.abs(deviation)) < 5
    assert 0.8 < np.sqrt(np.mean(deviation**2)) < 1.2  # the choice of one key says nothing about that of the next


@pytest.mark.parametrize(
    ("axis", "spec", "expected"),
    [
        (0, PartitionSpec("x", "y"), ("x", "y")),
        (0, PartitionSpec("y", "x"), (None, "x")),  # two strata in four shards
        (1, PartitionSpec(None, ("x", "y")), (None, None)),
    ],
    ids=str,
)
def test_on_an_explicit_mesh_chosen_entries_lie_as_the_array_unless_shards_cut_strata(axis, spec, expected):
    strata = Strata((16, 16), axis, size=8, kept=96)
    x = jnp.arange(1, 257.0).reshape(16, 16)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        results = there_and_back(strata, jax.device_put(x, NamedSharding(mesh, spec)))
    specs = [tuple(jax.typeof(result).sharding.spec) for result in results]
    assert specs == [expected, expected, tuple(spec)]
    jax.tree.map(np.testing.assert_array_equal, results, there_and_back(strata, x))
