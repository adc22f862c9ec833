"""A state in host memory: the same numbers, in the memory that is asked for, on every mesh."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import momentax
from momentax.sharding import state_shardings

PARAMS = {"dense": {"kernel": jnp.linspace(-1.0, 1.0, 128).reshape(16, 8), "bias": jnp.linspace(0.0, 1.0, 8)}}
SPECS = {"dense": {"kernel": jax.P("x", "y"), "bias": jax.P("y")}}


def kinds(tree):
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.sharding.memory_kind for path, x in named}


def trajectory(tx, params, state, steps=3):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(lambda p: p * p, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_meshes_it_takes_the_same_steps_with_slots_in_host_memory(kind):
    plain = momentax.adamp(0.1)
    tx = momentax.offload_state(plain)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS))
        lies = state_shardings(tx, params)
        state = jax.jit(tx.init, out_shardings=lies)(params)
        there, state = trajectory(tx, params, state)
    assert [x.memory_kind for x in jax.tree.leaves(lies)] == list(kinds(state).values())
    assert kinds(state)["0/inner/mu/dense/kernel"] == kinds(state)["0/inner/nu/dense/bias"] == "pinned_host"
    assert kinds(state)["0/inner/count"] == kinds(there)["dense/kernel"] == "device"
    assert state[0].inner.nu["dense"]["kernel"].sharding.is_equivalent_to(lies[0].inner.nu["dense"]["kernel"], 2)
    expected, _ = trajectory(plain, PARAMS, plain.init(PARAMS))
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_in_shard_map():
    tx = momentax.offload_state(momentax.scale_by_adam(), slots=("nu",))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params = jax.device_put({"w": jnp.arange(64.0).reshape(16, 4)}, NamedSharding(mesh, jax.P("x")))
    lies = state_shardings(tx, params)
    assert [x.memory_kind for x in (lies.mu["w"], lies.nu["w"])] == ["device", "pinned_host"]
    state = jax.jit(tx.init, out_shardings=lies)(params)
    specs = jax.tree.map(lambda sharding: sharding.spec, lies)
    step = jax.shard_map(tx.update, mesh=mesh, in_specs=(jax.P("x"), specs), out_specs=(jax.P("x"), specs))
    updates, state = jax.jit(step, donate_argnums=1)(params, state)
    assert state.nu["w"].sharding.memory_kind == "pinned_host" and state.nu["w"].sharding.spec == jax.P("x")
    np.testing.assert_allclose(updates["w"].ravel()[1:], 1.0, rtol=1e-5)


def test_rounded_slots_travel_as_bfloat16():
    state = momentax.offload_state(momentax.round_state(optax.adam(0.1))).init(PARAMS)
    kernel = state.inner[0].nu["dense"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding.memory_kind == "pinned_host"


def test_devices_without_host_memory_are_refused(monkeypatch):
    device = types.SimpleNamespace(
        platform="abacus", addressable_memories=lambda: [types.SimpleNamespace(kind="device")]
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    with pytest.raises(
        ValueError, match="^offload_state: .* 'abacus' have no memory 'pinned_host'; they have 'device'"
    ):
        momentax.offload_state(momentax.scale_by_adam()).init(PARAMS)
