"""Stable-SPAM and the Adam inside: resets before the step, decays that stay shrunk, AMSGrad, debiasing by a clock."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gradients(steps):
    return jax.random.normal(jax.random.key(0), (steps, 5))


def run(tx, gs):
    """The updates, and the state after each step."""

    def step(state, g):
        u, state = tx.update(g, state, jnp.zeros(5))
        return state, (u, state)

    return jax.lax.scan(step, tx.init(jnp.zeros(5)), gs)[1]


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_step_of_a_reset_is_a_first_step(variant):
    """Adam's first step has one size in every entry. In the code, the reset is behind that step."""
    every, steps = 4, 10
    updates, _ = run(momentax.stable_spam(1.0, eps=0.0, reset_every=every, variant=variant), gradients(steps))
    first = [t for t, u in enumerate(np.abs(updates), start=1) if np.allclose(u, 1, rtol=1e-9)]
    assert first == ([1, 4, 8] if variant == "paper" else [1])


def test_steps_of_a_period_are_those_of_filtered_gradients_from_the_start():
    """The filters go on through resets; the moments and their debiasing do not."""
    every, gs = 4, gradients(7)
    updates, _ = run(momentax.stable_spam(1.0, reset_every=every), gs)
    (clip, scale), adam = (momentax.clip_to_average_max(), momentax.scale_to_average_norm()), momentax.scale_by_adam()
    filtered, _ = run(scale, run(clip, gs)[0])
    for start, end in ((0, every - 1), (every - 1, 7)):
        np.testing.assert_allclose(updates[start:end], -run(adam, filtered[start:end])[0], rtol=1e-12)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_momentum_shrinks_once_and_in_the_code_grows_again(variant):
    """Read off the momentum, which under zero gradients is multiplied by b1 c."""
    b1, total, floor = 0.8, 3, 0.5
    tx = momentax.stable_spam(0.1, b1, reset_every=None, total_steps=total, eta_min=floor, variant=variant)
    _, states = run(tx, gradients(10).at[1:].set(0.0))
    mu = np.asarray(states[2].mu[:, 0])
    t = np.arange(2, 11)
    angle = np.pi * (t if variant == "official" else np.minimum(t, total + 1)) / (total + 1)
    c = floor + (1 - floor) * (1 + np.cos(angle)) / 2
    np.testing.assert_allclose(mu[1:] / mu[:-1], b1 * c, rtol=1e-12)


def test_the_norm_filter_takes_b1_where_gamma1_is_none():
    tx = momentax.stable_spam(0.1, 0.6, gamma1=None, reset_every=None)
    same = momentax.stable_spam(0.1, 0.6, gamma1=0.6, reset_every=None)
    np.testing.assert_array_equal(run(tx, gradients(4))[0], run(same, gradients(4))[0])


def test_amsgrad_divides_by_the_largest_average_in_the_order_of_torch():
    b1, b2, eps, gs = 0.9, 0.5, 0.1, gradients(8) * jnp.array([1, 5, 1, 0.1, 3, 0.1, 0.1, 9])[:, None]
    updates, _ = run(momentax.scale_by_adam(b1, b2, eps, amsgrad=True), gs)
    m = v = largest = np.zeros(5)
    for t, (g, u) in enumerate(zip(np.asarray(gs), updates, strict=True), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        largest = np.maximum(largest, v)
        np.testing.assert_allclose(u, m / (1 - b1**t) / (np.sqrt(largest) / np.sqrt(1 - b2**t) + eps), rtol=1e-12)


@pytest.mark.parametrize("debias", [lambda count: count + 1, False], ids=["the true age", "off"])
def test_debiasing_by_a_function_of_the_count(debias):
    """The true age gives what keeping account of the weights gives; an average without debiasing is that much less."""
    b1, b2, gs = 0.9, 0.99, gradients(6)
    updates, _ = run(momentax.scale_by_adam(b1, b2, 0.0, debias=debias), gs)
    expected, _ = run(momentax.scale_by_adam(b1, b2, 0.0), gs)
    t = np.arange(1, 7)[:, None]
    factor = 1.0 if callable(debias) else (1 - b1**t) / np.sqrt(1 - b2**t)
    np.testing.assert_allclose(updates, factor * expected, rtol=1e-12)
