"""Master weights: bfloat16 parameters follow the float32 trajectory, rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax


def run(tx, params, gradients):
    state, path = tx.init(params), []
    update = jax.jit(tx.update)
    for g in gradients:
        updates, state = update(jax.tree.map(lambda g, p: g.astype(p.dtype), g, params), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_are_the_rounded_master(dtype):
    keys = jax.random.split(jax.random.key(0), 40)
    # gradients that the narrow dtype holds exactly, so that both runs see the same ones
    gradients = [{"kernel": jax.random.normal(key, (4, 8)).astype(dtype).astype(jnp.float32)} for key in keys]
    start = {"kernel": (4 + jax.random.normal(jax.random.key(1), (4, 8))).astype(dtype)}
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), start)
    reference, _ = run(momentax.adamp(1e-3, weight_decay=0.1), wide, gradients)
    path, state = run(momentax.keep_master_weights(momentax.adamp(1e-3, weight_decay=0.1)), start, gradients)
    for narrow, full in zip(path, reference, strict=True):
        assert narrow["kernel"].dtype == dtype
        np.testing.assert_array_equal(narrow["kernel"], full["kernel"].astype(dtype))
    np.testing.assert_array_equal(state.master["kernel"], reference[-1]["kernel"])


def test_without_a_master_small_steps_are_lost():
    start = {"kernel": jnp.full((2, 2), 4.0, jnp.bfloat16)}
    gradients = [{"kernel": jnp.ones((2, 2))}] * 50
    lost, _ = run(optax.sgd(1e-3), start, gradients)
    kept, _ = run(momentax.keep_master_weights(optax.sgd(1e-3)), start, gradients)
    np.testing.assert_array_equal(lost[-1]["kernel"], start["kernel"])
    np.testing.assert_array_equal(kept[-1]["kernel"], jnp.full((2, 2), 4.0 - 0.05).astype(jnp.bfloat16))


def test_a_sign_change_is_corrected_by_the_next_step():
    params = {"w": jnp.array([1.0, -300.0], jnp.bfloat16)}
    tx = momentax.keep_master_weights(optax.sgd(1.0))
    target = jnp.array([-1e-3, 0.37])
    state = tx.init(params)
    for g in (params["w"].astype(jnp.float32) - target, jnp.zeros(2)):
        updates, state = tx.update({"w": g}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["w"], state.master["w"].astype(jnp.bfloat16))


def test_wide_leaves_have_no_master():
    params = {"norm": jnp.ones(3), "kernel": jnp.ones((2, 2), jnp.bfloat16)}
    tx = momentax.keep_master_weights(optax.sgd(0.5))
    state = tx.init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state.master)] == [(2, 2)]
    updates, _ = tx.update(params, state, params)
    np.testing.assert_array_equal(updates["norm"], -0.5)


def test_integer_master_is_refused():
    with pytest.raises(ValueError, match="keep_master_weights.*dtype"):
        momentax.keep_master_weights(optax.sgd(0.1), dtype=jnp.int32)
