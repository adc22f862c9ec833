"""Layers stacked in one leaf, sharded over any of its axes: the numbers of the replicated run, on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import momentax
from momentax import routing

STACKED = routing.flax(stacked="^blocks")
OPTIMIZERS = {
    "adamp": momentax.adamp(0.1, weight_decay=0.1, routing=STACKED),
    "am_adamw": momentax.am_adamw(0.1, weight_decay=0.1, routing=STACKED),
    "am_sgd": momentax.am_sgd(0.1, scope="leaf", routing=STACKED),
}


def train(tx, params):
    """Parameters after three steps; the types of the state must not change on the way."""

    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = tx.init(params)
    before = jax.tree.map(jax.typeof, state)
    step = jax.jit(step)
    for _ in range(3):
        params, state = step(params, state)
    assert jax.tree.map(jax.typeof, state) == before
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_sharded_stacks_equal_replicated_ones(name, kind):
    kernel = jax.random.normal(jax.random.key(0), (8, 16, 8))
    params = {"blocks": {"dense": {"kernel": kernel, "bias": jnp.ones((8, 8))}}, "head": {"kernel": kernel[0]}}
    expected = train(OPTIMIZERS[name], params)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    for axis in range(3):
        spec = PartitionSpec(*(("d" if i == axis else None) for i in range(3)))
        sharding = {3: NamedSharding(mesh, spec), 2: NamedSharding(mesh, PartitionSpec("d"))}
        with jax.set_mesh(mesh):
            placed = jax.tree.map(lambda leaf, sharding=sharding: jax.device_put(leaf, sharding[leaf.ndim]), params)
            actual = train(OPTIMIZERS[name], placed)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)
