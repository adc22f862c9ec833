"""Adan: its linearity, its fixed points, and what a restart is."""

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


def gradients(steps=10, seed=0):
    return jax.random.normal(jax.random.key(seed), (steps, 5))


def run(tx, gs):
    state, updates = tx.init(jnp.zeros(5)), []
    for g in gs:
        u, state = tx.update(g, state)
        updates.append(u)
    return jnp.stack(updates), state


def test_equal_decays_make_it_an_average_of_look_ahead_gradients():
    """With b1 = b2 the numerator is the debiased average of g + b2 (g - g_previous): wrong coefficients show."""
    b, b3, eps = 0.9, 0.99, 1e-8
    gs = gradients()
    differences = jnp.concatenate([jnp.zeros((1, 5)), jnp.diff(gs, axis=0)])
    adan = momentax.scale_by_adan(b, b, b3, eps)
    average = momentax.average_gradients(b)
    state, mean = adan.init(jnp.zeros(5)), average.init(jnp.zeros(5))
    for t, (g, d) in enumerate(zip(gs, differences, strict=True), start=1):
        u, state = adan.update(g, state)
        expected, mean = average.update(g + b * d, mean)
        np.testing.assert_allclose(u * (jnp.sqrt(state.nu / (1 - b3**t)) + eps), expected, rtol=1e-12)


def test_a_constant_gradient_gives_its_sign():
    updates, _ = run(momentax.scale_by_adan(), [jnp.array([1e-3, -5.0, 2.0, -0.1, 70.0])] * 20)
    np.testing.assert_allclose(updates, jnp.sign(updates), rtol=1e-4)


def test_nesterov_equivalence():
    """Look-ahead descent and the rewriting with gradient differences (the paper's lemma) visit the same points, and
    the rewritten momentum is that of `heavy_ball(nesterov=True)`."""
    tx = momentax.heavy_ball(0.9, nesterov=True)
    state = tx.init(jnp.ones(5))
    hessian = jnp.diag(jnp.array([1.0, 4.0, 0.2, 2.0, 0.5]))
    eta, b = 0.05, 0.9
    theta, m = jnp.ones(5), jnp.zeros(5)
    x, M, g_tm1 = jnp.ones(5), jnp.zeros(5), jnp.zeros(5)
    for _ in range(30):
        y = theta - eta * b * m
        np.testing.assert_allclose(y, x, rtol=1e-12)
        m = b * m + hessian @ y
        theta = theta - eta * m
        g = hessian @ x
        M = b * M + g + b * (g - g_tm1)
        u, state = tx.update(g, state)
        np.testing.assert_allclose(u, M, rtol=1e-10)
        x, g_tm1 = x - eta * M, g


def directions(**restarts):
    """Adan's directions, from the updates of the optimizer at rate 1."""
    return optax.chain(momentax.adan(1.0, **restarts), optax.scale(-1.0))


@pytest.mark.parametrize(
    "restarts",
    [{"restart_every": 4}, {"restart_when": lambda count, updates, params: count % 4 == 0}],
    ids=["every", "when"],
)
def test_a_restart_is_a_fresh_start(restarts):
    gs = gradients(12)
    restarted, _ = run(directions(**restarts), gs)
    for start in (0, 4, 8):
        fresh, _ = run(momentax.scale_by_adan(), gs[start : start + 4])
        np.testing.assert_allclose(restarted[start : start + 4], fresh, rtol=1e-13)


def test_schedules_go_on_through_a_restart():
    seen = []

    def decay(count):
        seen.append(int(count))
        return 0.9

    run(directions(b1=decay, restart_every=2), gradients(5))
    assert seen == [0, 1, 2, 3, 4]


def test_a_restart_heals_a_poisoned_state():
    gs = gradients(6).at[1].set(jnp.nan)
    updates, _ = run(directions(restart_every=3), gs)
    assert jnp.isnan(updates[2]).all() and jnp.isfinite(updates[3:]).all()


@pytest.mark.parametrize("every", [0, -1, 2.5])
def test_bad_restart_interval_is_refused(every):
    with pytest.raises(ValueError, match="adan.*restart_every"):
        momentax.adan(0.1, restart_every=every)
