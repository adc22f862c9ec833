"""Functions that know no mesh, on arrays of a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from momentax.sharding import carry


def sort_and_sum(x, y):
    """What an explicit mesh would refuse where the sorted axis is sharded."""
    return jnp.sort(x, axis=0) + y, jnp.sum(x.reshape(2, -1), axis=1)


PLACES = [lambda spec: spec, lambda spec: PartitionSpec(None)]


def array():
    return jax.random.permutation(jax.random.key(0), jnp.arange(32.0)).reshape(8, 4)  # whole numbers: sums are exact


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("with_mesh", [False, True], ids=["without set_mesh", "with set_mesh"])
@pytest.mark.parametrize("kinds", [("Explicit", "Explicit"), ("Explicit", "Auto"), ("Auto", "Auto")], ids="-".join)
def test_results_are_those_without_a_mesh_and_lie_where_they_are_told(kinds, with_mesh, compiled):
    expected = sort_and_sum(array(), 1.0)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=tuple(AxisType[kind] for kind in kinds))
    spec = PartitionSpec("x")  # shorter than the rank
    x, y = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (array(), jnp.ones((8, 4))))

    def run(x, y):
        return carry(sort_and_sum, x, y, places=PLACES)

    if with_mesh:
        with jax.set_mesh(mesh):
            results = (jax.jit(run) if compiled else run)(x, y)
    else:
        results = (jax.jit(run) if compiled else run)(x, y)
    for actual, value in zip(results, expected, strict=True):
        np.testing.assert_array_equal(actual, value)
    if kinds[0] == "Explicit":
        assert [tuple(jax.typeof(result).sharding.spec) for result in results] == [("x", None), (None,)]


def test_without_a_mesh_it_is_a_call():
    (total,) = carry(lambda x: (jnp.sum(x),), array(), places=[lambda spec: PartitionSpec()])
    assert total == jnp.sum(array())
