"""NAMO and NAMO-D: Muon where gradients agree, bounded steps in the official form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax

BOTH = [momentax.namo, momentax.namo_d]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def start():
    keys = jax.random.split(jax.random.key(0))
    return {"dense": {"kernel": jax.random.normal(keys[0], (6, 4)), "bias": jax.random.normal(keys[1], (4,))}}


def run(tx, params, gradients):
    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), gradients)[1])(params)


def noisy(params, steps=6):
    return jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), (steps, *x.shape)), params)


def assert_trees_close(a, b, rtol=1e-10):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-13), a, b)


@pytest.mark.parametrize("factory", BOTH)
def test_it_is_muon_while_the_gradient_stays_the_same(factory, start):
    gradients = jax.tree.map(lambda x: jnp.broadcast_to(jnp.sin(9 * x), (6, *x.shape)), start)
    namo = factory(0.01, eps=0.0, nesterov=False)
    rest = optax.chain(momentax.scale_by_adam(0.9, 0.95, eps_hat=True), momentax.decays.take_step(0.01, 0.1))
    muon = momentax.muon(0.01, weight_decay=0.1, scale="moonlight", nesterov=False, rest=rest)
    assert_trees_close(run(namo, start, gradients), run(muon, start, gradients))


@pytest.mark.parametrize("factory", BOTH)
def test_the_official_form_differs_only_where_its_bounds_act(factory, start):
    rate = optax.piecewise_constant_schedule(0.05, {3: 400.0})
    paper, official = (run(factory(rate, variant=v, steps=1), start, noisy(start)) for v in ("paper", "official"))
    same = np.isclose(paper["dense"]["kernel"], official["dense"]["kernel"], rtol=1e-10).all(axis=(1, 2))
    assert same.tolist() == [True] * 3 + [False] * 3
    assert_trees_close(paper["dense"]["bias"], official["dense"]["bias"])
    # one step of the polynomial has singular values up to 1.2024, and decay takes a tenth at most
    before, after = official["dense"]["kernel"][2:4]
    assert jnp.linalg.norm(after - before, 2) <= 1.2024 + 0.1 * jnp.linalg.norm(before, 2)


@pytest.mark.parametrize("factory", BOTH)
def test_the_rest_has_the_same_learning_rate_unless_it_has_its_own(factory, start):
    gradients = noisy(start)
    same = run(factory(0.01), start, gradients)
    assert_trees_close(same, run(factory(0.01, rest_learning_rate=0.01), start, gradients))
    slow = run(factory(0.01, rest_learning_rate=0.0), start, gradients)
    assert_trees_close(slow["dense"]["kernel"], same["dense"]["kernel"])
    np.testing.assert_array_equal(slow["dense"]["bias"][-1], start["dense"]["bias"])
