"""What NAMO's alpha is for gradients that agree, that scatter, and for those that make it largest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax
from momentax import routing

B1, B2 = 0.95, 0.99
ONES = optax.stateless(lambda updates, params: jax.tree.map(jnp.ones_like, updates))  # so that u shows alpha
MATRIX = routing.matrix((0,), (1,))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def run(tx, gradients, w=None):
    """The updates of all steps, w unchanged."""

    def step(state, g):
        u, state = tx.update(g, state, w)
        return state, u

    return jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[1])(gradients)


def alphas(gradients, **options):
    tx = momentax.scale_by_norm_snr(ONES, **{"eps": 0.0, "scale": "none", "routing": MATRIX, **options})
    return np.asarray(run(tx, gradients)[:, 0, 0])


def noise(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_a_constant_gradient_takes_full_steps():
    gradients = jnp.broadcast_to(noise(3, 4), (30, 3, 4))
    np.testing.assert_allclose(alphas(gradients, nesterov=False), 1, rtol=1e-12)
    t = np.arange(1, 31)
    np.testing.assert_allclose(alphas(gradients), (1 - B1 ** (t + 1)) / (1 - B1**t), rtol=1e-12)
    warm = alphas(gradients, nesterov=False, b1=lambda t: 0.9 * t / (t + 5), b2=lambda t: 1 - 1 / (t + 2))
    np.testing.assert_allclose(warm, 1, rtol=1e-12)


def test_noise_takes_short_steps():
    alpha = alphas(noise(300, 40, 40), nesterov=False, b1=0.9)[100:]
    np.testing.assert_allclose(alpha.mean(), np.sqrt((1 - 0.9) / (1 + 0.9)), rtol=0.03)


def bound(t):
    weights = np.array([np.sum((B1**2 / B2) ** np.arange(steps)) for steps in t])
    return np.sqrt(1 - B2**t) / (1 - B1**t) * (1 - B1) / np.sqrt(1 - B2) * np.sqrt(weights)


def test_alpha_has_a_bound_that_is_attained():
    t = np.arange(1, 61)
    assert bound(np.arange(1, 1000)).max() < 1.7
    worst = (B1 / B2) ** (60 - jnp.arange(1, 61))[:, None, None] * noise(1, 3, 4)
    alpha = alphas(worst, nesterov=False)
    np.testing.assert_allclose(alpha[-1], bound(t)[-1], rtol=1e-12)
    spiky = noise(60, 3, 4) * jnp.exp(3 * noise(60, 1, 1, seed=1)) + 0.5
    for sequence in (worst, spiky):
        assert np.all(alphas(sequence, nesterov=False) <= bound(t) * (1 + 1e-12))


def test_the_scale_of_the_gradients_does_not_matter():
    tx = momentax.scale_by_norm_snr(momentax.orthogonalize(eps=None, routing=MATRIX), eps=0.0, routing=MATRIX)
    gradients = noise(5, 3, 4)
    np.testing.assert_allclose(run(tx, 1e-6 * gradients), run(tx, gradients), rtol=1e-9)


@pytest.mark.parametrize("rate", [None, 0.1])
def test_nothing_happens_before_the_first_gradient(rate):
    w = noise(3, 4)
    tx = momentax.scale_by_norm_snr(weight_decay=0.5, eps=0.0, learning_rate=rate, routing=MATRIX)
    updates = run(tx, jnp.zeros((2, 3, 4)).at[1].set(1.0), w)
    np.testing.assert_array_equal(updates[0], 0)
    assert np.all(np.isfinite(updates)) and np.all(updates[1] != 0)


def test_the_terminal_bounds_step_and_decay():
    """alpha is 1 here, s is 0.2 sqrt(4) = 0.4, and the direction is all ones."""
    w, g = noise(3, 4), jnp.broadcast_to(noise(3, 4, seed=1), (1, 3, 4))
    options = dict(nesterov=False, eps=0.0, weight_decay=1.5, routing=MATRIX)
    [direction] = run(momentax.scale_by_norm_snr(ONES, **options), g, w)
    np.testing.assert_allclose(direction, 0.4 + 1.5 * w, rtol=1e-12)
    for rate, step, decay in ((0.1, 0.04, 0.1), (2.0, 0.8, 1.0), (4.0, 1.0, 1.0)):
        [update] = run(momentax.scale_by_norm_snr(ONES, learning_rate=rate, **options), g, w)
        np.testing.assert_allclose(update, -step - 1.5 * decay * w, rtol=1e-12)


WRAPPERS = [momentax.scale_by_norm_snr, momentax.scale_by_column_snr]


@pytest.mark.parametrize("factory", WRAPPERS)
@pytest.mark.parametrize("side_by_side", [False, True])
def test_matrices_of_one_leaf_are_by_themselves(factory, side_by_side):
    gradients = noise(3, 2, 4, 5) * jnp.array([1.0, 100.0]).reshape(1, 2, 1, 1)
    gradients = gradients.at[1, 0, 0, 0].set(jnp.nan)  # and what is not finite stays in its matrix
    w = noise(2, 4, 5, seed=1)
    rule = routing.matrix((1,), (2,), (0,))
    if side_by_side:
        rule = dataclasses.replace(MATRIX, blocks=2)
        gradients, w = (jnp.concatenate([x[..., 0, :, :], x[..., 1, :, :]], axis=-1) for x in (gradients, w))
    together = run(factory(weight_decay=0.1, routing=rule), gradients, w)
    single = factory(weight_decay=0.1, routing=MATRIX)
    for index in range(2):
        part = (lambda x, i=index: x[..., 5 * i : 5 * i + 5]) if side_by_side else (lambda x, i=index: x[..., i, :, :])
        np.testing.assert_allclose(part(together), run(single, part(gradients), part(w)), rtol=1e-10)
    assert np.all(np.isfinite(part(together))) and np.any(np.isnan(together))


@pytest.mark.parametrize("factory", WRAPPERS)
def test_what_cannot_be_done_is_refused(factory):
    name = factory.__name__
    w = {"kernel": jnp.ones((2, 3))}
    tx = factory(weight_decay=0.1)
    with pytest.raises(ValueError, match=f"{name} needs the parameters"):
        tx.update(w, tx.init(w))
    with pytest.raises(ValueError, match=f"{name}.*scale/bias.*vector.*partition_by_rule"):
        tx.init({"scale": {"bias": jnp.ones(3)}})
    with pytest.raises(TypeError, match=f"{name}.*inner"):
        factory(0.9)
