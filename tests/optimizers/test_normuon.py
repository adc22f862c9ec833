"""NorMuon as its users meet it: Muon with rows of equal size, a chain to copy, decay that spares entries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def model():
    return {"dense": {"kernel": normal(1, (4, 6)), "bias": normal(2, (6,))}, "lm_head": {"kernel": normal(3, (6, 5))}}


def updates_of(tx, params, steps=2):
    """The updates of each step at fixed weights."""

    def step(state, count):
        updates, state = tx.update(jax.tree.map(lambda p: jnp.sin(3 * p + count), params), state, params)
        return state, updates

    return jax.jit(lambda p: jax.lax.scan(step, tx.init(p), jnp.arange(steps, dtype=jnp.float64))[1])(params)


def test_it_is_muon_with_rows_of_equal_size():
    params = model()
    ours, muons = updates_of(momentax.normuon(), params), updates_of(momentax.muon(), params)
    a, b = ours["dense"]["kernel"], muons["dense"]["kernel"]
    np.testing.assert_allclose(jnp.sum(a * a, (1, 2)), jnp.sum(b * b, (1, 2)), rtol=1e-12)
    rows = jnp.sqrt(jnp.sum(a[0] * a[0], axis=0))
    np.testing.assert_allclose(rows, rows[0], rtol=1e-8)
    for name, leaf in (("dense", "bias"), ("lm_head", "kernel")):
        np.testing.assert_allclose(ours[name][leaf], muons[name][leaf], rtol=1e-12)


def test_the_algorithm_of_the_paper_steps_by_a_fifth_of_the_rate():
    updates = updates_of(momentax.normuon(0.5, rescale="rms", scale="none"), model())["dense"]["kernel"]
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(updates * updates, axis=(1, 2))), 0.5 * 0.2, rtol=1e-12)


def test_it_is_the_chain_of_its_parts():
    params = {"dense": {"kernel": normal(1, (4, 6))}}
    chain = optax.chain(
        momentax.average_gradients(0.9, debias=False),
        momentax.orthogonalize("you", 3),
        momentax.normalize_rows(0.8, rescale="rms"),
        momentax.scale_by_matrix_shape("spectral"),
        momentax.decays.cautious(0.3),
        optax.scale_by_learning_rate(0.1),
    )
    ours = momentax.normuon(
        0.1,
        0.9,
        0.8,
        0.3,
        nesterov=False,
        method="you",
        steps=3,
        rescale="rms",
        scale="spectral",
        decay="cautious",
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), updates_of(ours, params), updates_of(chain, params)
    )


def test_one_rate_for_all_where_none_is_given():
    params, rates = model(), (lambda count: 0.1 / (1 + count))
    one = updates_of(momentax.normuon(rates, rest_learning_rate=None), params)
    two = updates_of(momentax.normuon(rates, rest_learning_rate=rates), params)
    jax.tree.map(np.testing.assert_array_equal, one, two)
