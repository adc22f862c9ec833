"""MuonH and AdamH as their users meet them: what lies on spheres, what does not, and what a rate means."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax

RATE = 0.1


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def model():
    return {
        "embed": {"embedding": normal(0, (7, 4))},
        "dense": {"kernel": normal(1, (4, 6)), "bias": normal(2, (6,))},
        "lm_head": {"kernel": normal(3, (6, 5))},
    }


def gradient(params, count):
    return jax.tree.map(lambda p: jnp.sin(3 * p + count), params)


def trained(tx, start, steps=3, gradient=gradient):
    def step(carry, count):
        params, state = carry
        updates, state = tx.update(gradient(params, count), state, params)
        return (optax.apply_updates(params, updates), state), None

    counts = jnp.arange(steps, dtype=jnp.float64)
    (end, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), counts))(start)
    return end


def assert_same(actual, expected, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), actual, expected)


def norm(x):
    return float(jnp.linalg.norm(x))


@pytest.mark.parametrize("factory", [momentax.muonh, momentax.adamh])
def test_matrices_and_heads_keep_their_norms_and_the_rest_is_adamw(factory):
    start = model()
    end = trained(factory(RATE), start)
    for name in ("dense", "lm_head"):
        assert norm(end[name]["kernel"]) == pytest.approx(norm(start[name]["kernel"]), rel=1e-13)
        assert not np.allclose(end[name]["kernel"], start[name]["kernel"])
    adam = trained(optax.adam(RATE, 0.9, 0.95), start)
    assert_same(end["embed"], adam["embed"])
    assert_same(end["dense"]["bias"], adam["dense"]["bias"])


def test_the_head_of_muonh_takes_adamh():
    start = model()
    a, b = trained(momentax.muonh(RATE), start), trained(momentax.adamh(RATE), start)
    assert_same(a["lm_head"], b["lm_head"])
    assert not np.allclose(a["dense"]["kernel"], b["dense"]["kernel"])


def test_it_is_the_chain_of_its_parts():
    start = {"dense": {"kernel": normal(1, (4, 6))}}
    chain = optax.chain(
        momentax.heavy_ball(0.9),
        momentax.orthogonalize("you", 5, 1e-8, input_dtype=jnp.bfloat16),
        momentax.retract_to_sphere(RATE, 0.3, radius="current", scope="leaf", decay="cautious"),
    )
    ours = momentax.muonh(
        RATE,
        0.9,
        0.3,
        nesterov=False,
        radius="current",
        scope="leaf",
        decay="cautious",
        input_dtype=jnp.bfloat16,
    )
    assert_same(trained(ours, start), trained(chain, start))


@pytest.mark.parametrize("factory", [momentax.muonh, momentax.adamh])
def test_the_scale_of_gradients_and_weights_does_not_matter(factory):
    start = {"dense": {"kernel": normal(1, (4, 6))}, "lm_head": {"kernel": normal(3, (6, 5))}}
    fixed = jax.tree.map(lambda p: jnp.cos(5 * p), start)

    def scaled(factor):
        return lambda params, count: jax.tree.map(lambda g: factor * jnp.cos(count) * g, fixed)

    tx = factory(RATE, eps=1e-30)
    end = trained(tx, start, gradient=scaled(1.0))
    assert_same(trained(tx, start, gradient=scaled(1e6)), end, rtol=1e-9)
    hundredfold = trained(tx, jax.tree.map(lambda p: 100 * p, start), gradient=scaled(1.0))
    assert_same(hundredfold, jax.tree.map(lambda p: 100 * p, end), rtol=1e-9)


def test_a_stack_is_trained_as_its_layers():
    start = {"blocks": {"dense": {"kernel": normal(4, (3, 4, 6))}}}
    end = trained(momentax.muonh(RATE, routing=momentax.routing.flax(stacked="blocks")), start)
    for layer in range(3):
        alone = trained(momentax.muonh(RATE), {"dense": {"kernel": start["blocks"]["dense"]["kernel"][layer]}})
        assert_same(end["blocks"]["dense"]["kernel"][layer], alone["dense"]["kernel"])


def test_schedules_reach_every_group():
    start = model()
    rates = jnp.array([0.1, 0.0, 0.0])
    once = trained(momentax.muonh(RATE), start, steps=1)
    assert_same(trained(momentax.muonh(lambda count: rates[count]), start), once)


@pytest.mark.parametrize("factory", [momentax.muonh, momentax.adamh])
def test_it_learns_what_lies_on_the_sphere(factory):
    w, target = normal(0, (6, 4)), normal(1, (6, 4))
    target = target * (norm(w) / norm(target))
    inputs = normal(2, (32, 6))

    def gradient(params, count):
        return jax.grad(lambda w: jnp.mean((inputs @ (w - target)) ** 2))(params["kernel"])

    tx = factory(optax.cosine_decay_schedule(0.1, 100))
    end = trained(tx, {"kernel": w}, 100, lambda p, c: {"kernel": gradient(p, c)})
    assert norm(end["kernel"] - target) < 0.05 * norm(w - target)


def test_a_head_that_starts_at_zero_is_refused_by_name():
    params = model()
    params["lm_head"]["kernel"] = jnp.zeros((6, 5))
    for factory in (momentax.muonh, momentax.adamh):
        with pytest.raises(ValueError, match="leaf 'lm_head/kernel' .* has norm zero.*initialise"):
            factory(RATE).init(params)
