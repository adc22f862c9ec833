"""Checkpoints of Orbax move between meshes: from eight devices to four and one, from shards to copies."""

import functools

import jax
import numpy as np
import optax
import pytest
import training
from jax.sharding import AxisType, NamedSharding
from orbax.checkpoint import v1 as orbax

import momentax
from momentax.sharding import state_shardings

PARAMS = {
    "attention": {"kernel": (16, 8), "bias": (8,)},
    "embed": {"embedding": (16, 8)},
    "mlp": {"kernel": (8, 16)},
}
OPTIMIZERS = {
    "adamp": momentax.adamp(0.1, weight_decay=0.1),
    "muon": momentax.muon(optax.linear_schedule(0.1, 0.0, 10)),
    "namo": momentax.namo(0.1),
    "fismo": momentax.fismo(0.1),
    "spam": momentax.spam(0.1, density=0.5, reset_every=2, warmup=1, density_mask=momentax.routing.only_matrices),
    "rounded": momentax.round_state(momentax.scale_by_adam()),
}
TARGETS = {"four": (4, True), "one": (1, True), "copies on eight": (8, False)}


def mesh(devices):
    return jax.make_mesh((devices,), ("fsdp",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:devices])


def places(devices, sharded):
    """FSDP along the first axis, or copies."""
    where = NamedSharding(mesh(devices), jax.P("fsdp") if sharded else jax.P())
    return jax.tree.map(lambda shape: where, PARAMS, is_leaf=lambda x: isinstance(x, tuple))


def parameters():
    keys = iter(jax.random.split(jax.random.key(0), 8))
    return jax.tree.map(lambda shape: jax.random.normal(next(keys), shape), PARAMS, is_leaf=lambda x: type(x) is tuple)


def run(tx, params, state, first, last):
    return dict(zip(("params", "state"), training.run(tx, params, state, first, last), strict=True))


@functools.cache
def saved(name):
    """Three steps on eight devices."""
    with jax.set_mesh(mesh(8)):
        params = jax.device_put(parameters(), places(8, True))
        return run(OPTIMIZERS[name], params, OPTIMIZERS[name].init(params), 0, 3)


@functools.cache
def continued(name):
    with jax.set_mesh(mesh(8)):
        return run(OPTIMIZERS[name], saved(name)["params"], saved(name)["state"], 3, 5)


def like(tx, devices, sharded):
    """The types of a checkpoint, where it is to lie."""
    shapes = parameters()
    params = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places(devices, sharded)
    )
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(tx.init, shapes),
        state_shardings(tx, params),
    )
    return {"params": params, "state": state}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for name in OPTIMIZERS:
        orbax.save(root / name, saved(name))
    return root


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_on_elsewhere(name, target, folder):
    tx, (devices, sharded) = OPTIMIZERS[name], TARGETS[target]
    types = like(tx, devices, sharded)
    restored = orbax.load(folder / name, types)
    assert jax.tree.structure(restored) == jax.tree.structure(saved(name))
    for a, b, asked in zip(*map(jax.tree.leaves, (restored, saved(name), types)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype and a.sharding == asked.sharding
    with jax.set_mesh(mesh(devices)):
        here = run(tx, restored["params"], restored["state"], 3, 5)
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(continued(name)), strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_the_same_mesh_it_goes_on_bit_by_bit(name, folder):
    restored = orbax.load(folder / name, like(OPTIMIZERS[name], 8, True))
    with jax.set_mesh(mesh(8)):
        here = run(OPTIMIZERS[name], restored["params"], restored["state"], 3, 5)
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(continued(name)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_of_another_optimizer_is_refused_and_stays(folder):
    with pytest.raises(ValueError, match="tree structures do not match:\nstate:"):
        orbax.load(folder / "adamp", like(OPTIMIZERS["muon"], 4, True))
    assert int(orbax.load(folder / "adamp", like(OPTIMIZERS["adamp"], 1, True))["state"][0].count) == 3
