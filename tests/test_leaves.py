"""Errors that name the leaf, and the lifting of leaf functions to trees."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax

FACTORIES = {
    "heavy_ball": momentax.heavy_ball(),
    "average_gradients": momentax.average_gradients(),
    "scale_by_adam": momentax.scale_by_adam(),
    "scale_by_adan": momentax.scale_by_adan(),
    "scale_by_lion_k": momentax.scale_by_lion_k(),
    "adapt_memory": momentax.adapt_memory(),
}
PARAMS = {"block": {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}}


@pytest.mark.parametrize("name", FACTORIES)
def test_mismatched_gradients_name_the_leaf(name):
    tx = FACTORIES[name]
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=rf"{name}.*block/dense/kernel.*missing"):
        tx.update({"block": {"dense": {"bias": jnp.ones(3)}}}, state, PARAMS)
    with pytest.raises(ValueError, match=rf"{name}.*block/dense/kernel.*\(3, 2\) where \(2, 3\) is expected"):
        tx.update({"block": {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}}}, state, PARAMS)


@pytest.mark.parametrize("name", FACTORIES)
def test_integer_leaves_are_named(name):
    with pytest.raises(TypeError, match=f"{name}.*'steps/total'.*int32.*optax.masked"):
        FACTORIES[name].init({"steps": {"total": jnp.zeros(3, jnp.int32)}})


@pytest.mark.parametrize("name", [*list(FACTORIES)[2:]])
def test_complex_leaves_are_named_where_the_maths_is_real(name):
    with pytest.raises(TypeError, match=f"{name}.*'phase'.*complex64.*split_real_and_imaginary"):
        FACTORIES[name].init({"phase": jnp.zeros(3, jnp.complex64)})


@pytest.mark.parametrize("name", [*list(FACTORIES)[:2]])
def test_linear_momentum_takes_complex_leaves(name):
    tx, g = FACTORIES[name], jnp.array([1 + 2j, -3j])
    u, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(u, g, rtol=1e-6)


def test_half_precision_state_is_float32_unless_stated():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3, jnp.float16), "c": jnp.ones(3)}
    state = momentax.scale_by_adam(nu_dtype=jnp.bfloat16).init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.mu)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.nu)} == {jnp.dtype("bfloat16")}


def test_paths_drop_the_value_of_a_variable_but_not_a_submodule_called_value():
    key = jax.tree_util
    variable = (key.DictKey("attention"), key.DictKey("value"), key.DictKey("kernel"), key.GetAttrKey("value"))
    assert momentax.paths.leaf_path(variable) == "attention/value/kernel"
    assert momentax.paths.leaf_path(variable[:2]) == "attention/value"
    assert momentax.paths.leaf_path((key.DictKey(("kernel", "scale")), key.SequenceKey(0))) == "kernel/scale/0"


def test_missing_params_name_the_transform_and_the_call():
    for name, tx in {
        "project_radial": momentax.adamp(0.1),
        "decoupled": momentax.decays.decoupled(0.1),
        "proximal": momentax.decays.proximal(0.1, 0.1),
        "adapt_memory": momentax.am_adamw(0.1, weight_decay=0.1),
        "keep_master_weights": momentax.keep_master_weights(momentax.adan(0.1)),
    }.items():
        with pytest.raises(ValueError, match=rf"{name} needs the parameters: call `update\(updates, state, params\)`"):
            tx.update(PARAMS, tx.init(PARAMS))


def test_the_same_leaves_in_another_order_are_refused_not_swapped():
    state = momentax.heavy_ball().init({"a": jnp.ones(2), "b": jnp.zeros(2)})
    reordered = collections.OrderedDict(b=jnp.zeros(2), a=jnp.ones(2))
    with pytest.raises(ValueError, match="heavy_ball.*'b' of the updates stands where .* have 'a'"):
        momentax.heavy_ball().update(reordered, state)


def test_what_inject_hyperparams_takes_for_a_schedule_is_refused_with_the_remedy():
    make = optax.inject_hyperparams(momentax.adamp)
    masked = make(1.0, weight_decay=0.5, weight_decay_mask=momentax.routing.no_decay_on_vectors)
    with pytest.raises(TypeError, match="mask must hold Python bools.*static_args"):
        masked.update(PARAMS, masked.init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match="mu_dtype.*static_args"):
        make(1.0, mu_dtype=jnp.bfloat16).init(PARAMS)
    static = optax.inject_hyperparams(momentax.adamp, static_args=("weight_decay_mask", "mu_dtype"))
    tx = static(1.0, weight_decay=0.5, weight_decay_mask=momentax.routing.no_decay_on_vectors, mu_dtype=jnp.bfloat16)
    plain = momentax.adamp(
        1.0, weight_decay=0.5, weight_decay_mask=momentax.routing.no_decay_on_vectors, mu_dtype=jnp.bfloat16
    )
    ours, theirs = (t.update(PARAMS, t.init(PARAMS), PARAMS)[0] for t in (tx, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


@pytest.mark.parametrize("wrong", [(0.9, 0.999), "0.9", None])
def test_coefficients_that_are_no_numbers_are_refused(wrong):
    with pytest.raises((TypeError, ValueError), match="adamp: `learning_rate` must be a number"):
        momentax.adamp(wrong)


def test_slots_must_hold_what_the_leaves_hold():
    with pytest.raises(ValueError, match="heavy_ball: `mu_dtype`"):
        momentax.heavy_ball(mu_dtype=jnp.int8).init(PARAMS)
    with pytest.raises(ValueError, match="heavy_ball: `mu_dtype`"):
        momentax.heavy_ball(mu_dtype=jnp.float32).init({"phase": jnp.zeros(2, jnp.complex64)})


def test_empty_leaves_and_python_numbers_pass():
    params = {"empty": {"kernel": jnp.ones((0, 4))}, "number": 1.0}
    for tx in (momentax.adamp(0.1), momentax.sgdp(0.1), momentax.am_adamw(0.1), momentax.adan(0.1)):
        updates, _ = tx.update(params, tx.init(params), params)
        assert updates["empty"]["kernel"].shape == (0, 4) and jnp.isfinite(updates["number"])
