"""Every optimizer's state where its parameters are, on meshes of both kinds, under every wrapper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import CASES
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import momentax
from momentax.sharding import state_shardings

P = PartitionSpec
SHAPES = {
    "block": {"kernel": (16, 8), "bias": (8,)},
    "embed": {"embedding": (32, 8)},
    "norm": {"scale": (8,)},
    "stack": {"kernel": (4, 16, 16)},
    "temperature": (),
}
SPECS = {
    "block": {"kernel": P("data", "model"), "bias": P("model")},
    "embed": {"embedding": P(("data", "model"))},
    "norm": {"scale": P()},
    "stack": {"kernel": P("model", None, "data")},
    "temperature": P(),
}


@functools.cache
def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def parameters():
    keys = iter(jax.random.split(jax.random.key(0), 8))
    return jax.tree.map(lambda shape: jax.random.normal(next(keys), shape), SHAPES, is_leaf=lambda x: type(x) is tuple)


def placed(kind=AxisType.Auto):
    return jax.device_put(parameters(), jax.tree.map(lambda spec: NamedSharding(mesh(kind), spec), SPECS))


def by_path(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat(tree)}


def flat(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


OPTIMIZERS = {case.name: case for case in CASES if case.name.startswith("momentax.")}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_of_every_optimizer_lie_as_their_parameters_and_the_rest_is_whole(name):
    tx = OPTIMIZERS[name].subject().transform
    params = {key: value for key, value in placed().items() if key != "stack"}
    specs = by_path(SPECS)
    state, lies = jax.eval_shape(tx.init, params), state_shardings(tx, params)
    assert jax.tree.structure(state) == jax.tree.structure(lies)
    for (path, leaf), (_, sharding) in zip(by_path(state).items(), by_path(lies).items(), strict=True):
        owner = next((p for p in by_path(params) if path.endswith(f"/{p}") or path == p), None)
        if owner is None or leaf.shape == by_path(params)[owner].shape:
            assert sharding.spec == (specs[owner] if owner else P()) and sharding.mesh == mesh(), path
        sharding.shard_shape(leaf.shape)  # raises where it does not divide


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_explicit_meshes_they_are_the_types_that_init_gives(name):
    tx = OPTIMIZERS[name].subject().transform
    params = {key: value for key, value in placed(AxisType.Explicit).items() if key != "stack"}
    with jax.set_mesh(mesh(AxisType.Explicit)):
        state = jax.eval_shape(tx.init, params)
    for (path, leaf), (_, sharding) in zip(flat(state), flat(state_shardings(tx, params)), strict=True):
        spec = leaf.sharding.spec if leaf.sharding else P()
        expected = NamedSharding(mesh(AxisType.Explicit), spec, memory_kind=sharding.memory_kind)
        assert sharding.is_equivalent_to(expected, len(leaf.shape)), path


WRAPPED = {
    "optax.adamw": optax.adamw(1e-3),
    "MultiSteps": optax.MultiSteps(momentax.adamp(1e-3), 2),
    "inject": optax.inject_hyperparams(momentax.adamp)(learning_rate=1e-3),
    "masters": momentax.keep_master_weights(momentax.muon(rest=momentax.adamp(1e-3)), jnp.float64),
    "masked": optax.masked(momentax.scale_by_adam(), lambda params: {name: name == "block" for name in params}),
    "chain of partitions": optax.chain(momentax.clip_global_norm(1.0), momentax.muon()),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_compiled_init_makes_the_state_where_it_belongs(name):
    tx, params = WRAPPED[name], placed()
    params.pop("stack")
    with jax.enable_x64(name == "masters"):
        state = jax.jit(tx.init, out_shardings=state_shardings(tx, params))(params)
    specs, found = by_path(SPECS), 0
    for path, leaf in by_path(state).items():
        owner = next((p for p in specs if path.endswith(f"/{p}")), None)
        assert leaf.sharding == NamedSharding(mesh(), specs[owner] if owner else P()), path
        found += owner is not None
    assert found >= 4


def test_shorter_buffers_lie_as_the_parameter_where_the_devices_divide_them():
    tx = momentax.sparse_momentum(momentax.scale_by_adam(), density=0.25, density_mask=momentax.routing.only_matrices)
    params = {"a": jnp.zeros((64, 6)), "b": jnp.zeros((6, 64))}
    lies = state_shardings(tx, params, mesh(), {"a": P("data", "model"), "b": P("model", "data")})
    shapes = jax.eval_shape(tx.init, params).inner.mu
    assert shapes["a"].shape == (16, 6) and lies.inner.mu["a"].spec == P("data", "model")
    one = momentax.sparse_momentum(momentax.scale_by_adam(), density=0.3, shards=1)
    assert jax.eval_shape(one.init, {"c": jnp.zeros((16, 10))}).inner.mu["c"].shape == (5, 10)
    assert state_shardings(one, {"c": jnp.zeros((16, 10))}, mesh(), P("data", "model")).inner.mu["c"].spec == P(
        None, "model"
    )


def test_all_ways_to_say_where_parameters_lie_give_the_same():
    tx, params = momentax.scale_by_adam(), placed()
    expected = state_shardings(tx, params)
    shapes = jax.eval_shape(lambda: parameters())
    struct = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    specs = by_path(SPECS)
    assert state_shardings(tx, struct) == expected
    assert state_shardings(tx, shapes, mesh(), SPECS) == expected
    assert state_shardings(tx, shapes, mesh(), lambda path, leaf: specs[path]) == expected
    assert expected.mu["stack"]["kernel"].spec == SPECS["stack"]["kernel"]


def test_parameters_named_like_fields_and_a_single_array():
    params = {"mu": {"w": jnp.zeros((8, 4))}, "w": jnp.zeros((4, 8)), "count": jnp.zeros(8)}
    specs = {"mu": {"w": P("data")}, "w": P(None, "data"), "count": P("model")}
    lies = state_shardings(optax.chain(momentax.scale_by_adam()), params, mesh(), specs)[0]
    assert jax.tree.map(lambda sharding: sharding.spec, lies.mu) == specs and lies.count.spec == P()
    lies = state_shardings(momentax.stable_spam(1e-3), jnp.zeros((8, 4)), mesh(), P("data"))
    assert lies[2].inner.mu.spec == P("data") and lies[0].max_average.spec == lies[2].count.spec == P()


def test_host_memory_is_asked_for_by_name_and_small_leaves_stay():
    tx, params = momentax.adamp(1e-2), placed()
    params.pop("stack")
    aside = state_shardings(tx, params, memory_kind="pinned_host")
    back = state_shardings(tx, params)
    state = tx.init(params)
    there = jax.device_put(state, aside)
    kinds = {path: leaf.sharding.memory_kind for path, leaf in by_path(there).items()}
    assert kinds["0/inner/mu/block/kernel"] == "pinned_host" and kinds["0/inner/count"] == "device"
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(jax.device_put(there, back)), strict=True):
        np.testing.assert_array_equal(before, after)
    with pytest.raises(ValueError, match="platform 'cpu' have no memory 'tape'; they have 'device', 'pinned_host'"):
        state_shardings(tx, params, memory_kind="tape")
