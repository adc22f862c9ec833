"""Muon as its users meet it: beside optax, as a chain to copy, at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import muon as optax_muon

import momentax


def params(dtype=None):
    rng = np.random.default_rng(0)
    shapes = {"up": {"kernel": (4, 6), "bias": (6,)}, "down": {"kernel": (6, 4)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def gradient(params, count):
    return jax.tree.map(lambda p: jnp.sin(3 * p + count), params)


def trained(tx, start, steps=4, gradient=gradient):
    def step(carry, count):
        params, state = carry
        updates, state = tx.update(gradient(params, count), state, params)
        return (optax.apply_updates(params, updates), state), None

    counts = jnp.arange(steps, dtype=jax.tree.leaves(start)[0].dtype)
    (end, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), counts))(start)
    return end


def assert_same(actual, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), actual, expected)


@pytest.mark.parametrize("nesterov", [True, False])
def test_bias_correction_as_optax(nesterov):
    with jax.enable_x64(True):
        start = params(jnp.float64)
        adam = optax.adamw(0.02, nesterov=nesterov, weight_decay=0.1)
        ours = momentax.muon(0.02, 0.95, 0.1, nesterov=nesterov, bias_correction="optax", eps=1e-8, rest=adam)
        theirs = optax_muon(0.02, weight_decay=0.1, nesterov=nesterov, adam_weight_decay=0.1)
        assert_same(trained(ours, start), trained(theirs, start), 1e-12)


def test_without_it_the_momentum_is_another():
    start = params()
    ours = trained(momentax.muon(0.02), start)
    theirs = trained(momentax.muon(0.02, bias_correction="optax"), start)
    assert np.abs(ours["up"]["kernel"] - theirs["up"]["kernel"]).max() > 1e-4


def test_the_chain_that_a_user_copies():
    copied = momentax.partition_by_rule(
        {
            "matrix": lambda routing: optax.chain(
                momentax.average_gradients(0.95, debias=False, nesterov=True),
                momentax.orthogonalize(routing=routing),
                momentax.scale_by_matrix_shape("kj", routing=routing),
                momentax.decays.take_step(0.02, 0.01),
            ),
            "rest": optax.adamw(3e-4, 0.9, 0.95, 1e-10, weight_decay=0.01),
        }
    )
    assert_same(trained(copied, params()), trained(momentax.muon(0.02, weight_decay=0.01), params()), 1e-6)


def test_the_scale_of_all_gradients_does_not_matter():
    def larger(params, count):
        return jax.tree.map(lambda g: 100.0 * g, gradient(params, count))

    ours = momentax.muon(0.02, rest=optax.identity())
    kernels = [trained(ours, params(), gradient=g)["up"]["kernel"] for g in (gradient, larger)]
    np.testing.assert_allclose(*kernels, atol=1e-5)


def test_a_zero_gradient_leaves_the_weights_but_for_decay():
    start = params()
    zero = lambda params, count: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    assert_same(trained(momentax.muon(0.02), start, gradient=zero), start, 0)
    decayed = trained(momentax.muon(0.5, weight_decay=0.5), start, steps=1, gradient=zero)
    np.testing.assert_allclose(decayed["up"]["kernel"], 0.75 * start["up"]["kernel"], rtol=1e-6)


def test_moonlight_steps_have_the_size_of_adams():
    start = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((24, 48)), jnp.float32)}
    tx = momentax.muon(1.0, scale="moonlight")
    updates, _ = tx.update(start, tx.init(start), start)
    rms = float(jnp.sqrt(jnp.mean(updates["kernel"] ** 2)))
    assert 0.2 * 0.68 <= rms <= 0.2 * 1.13


def test_embeddings_heads_and_vectors_are_adams():
    tree = {
        "embed": {"embedding": jnp.ones((5, 4))},
        "block": {"kernel": jnp.eye(4)},
        "lm_head": {"kernel": jnp.ones((4, 5))},
        "norm": {"scale": jnp.ones(4)},
    }
    tx = momentax.muon(1.0, rest=optax.scale(-7.0))
    updates, _ = tx.update(tree, tx.init(tree), tree)
    for name, leaf in (("embed", "embedding"), ("lm_head", "kernel"), ("norm", "scale")):
        assert (np.asarray(updates[name][leaf]) == -7).all()
    assert np.abs(updates["block"]["kernel"]).max() < 1.3
