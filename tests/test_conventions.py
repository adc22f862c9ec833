"""The identities between momentum conventions, each run against the transforms that implement its sides."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax
from momentax import conventions

B1, RATE, STEPS = 0.9, 0.05, 25
HESSIAN = np.array([1.0, 0.1, 4.0])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def descend(tx, steps=STEPS, start=1.0):
    def step(carry, _):
        x, state = carry
        updates, state = tx.update(HESSIAN * x, state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    x = jnp.full(3, start)
    return jax.lax.scan(step, (x, tx.init(x)), length=steps)[1]


def heavy_ball(rate, b1=B1, **options):
    return optax.chain(momentax.heavy_ball(b1, **options), optax.scale_by_learning_rate(rate))


def average(rate, b1=B1):
    return optax.chain(momentax.average_gradients(b1, debias=False), optax.scale_by_learning_rate(rate))


def test_average_and_heavy_ball_take_the_same_steps():
    np.testing.assert_allclose(
        descend(average(RATE)), descend(heavy_ball(conventions.average_to_heavy_ball(RATE, B1))), rtol=1e-12
    )
    np.testing.assert_allclose(
        descend(heavy_ball(RATE)), descend(average(conventions.heavy_ball_to_average(RATE, B1))), rtol=1e-12
    )


def test_conversions_take_schedules():
    rate = conventions.average_to_heavy_ball(lambda count: 0.1 / (1 + count), lambda count: 0.5)
    assert rate(1) == pytest.approx(0.025)
    np.testing.assert_allclose(
        descend(average(lambda count: RATE / (1 + count))),
        descend(heavy_ball(conventions.average_to_heavy_ball(lambda count: RATE / (1 + count), B1))),
        rtol=1e-12,
    )


def test_polyak_velocity_is_heavy_ball_at_a_constant_rate_only():
    def velocity(rates):
        x, v, path = jnp.ones(3), jnp.zeros(3), []
        for rate in rates:
            v = B1 * v - rate * HESSIAN * x
            x = x + v
            path.append(x)
        return jnp.stack(path)

    np.testing.assert_allclose(descend(heavy_ball(RATE)), velocity([RATE] * STEPS), rtol=1e-12)
    falling = RATE / (1.0 + jnp.arange(STEPS))
    assert not np.allclose(descend(heavy_ball(lambda count: falling[count])), velocity(falling), rtol=1e-2)


def test_averaged_iterates_are_heavy_ball():
    gamma, c = conventions.heavy_ball_to_averaged_iterates(RATE, B1)
    x = z = jnp.ones(3)
    path = []
    for _ in range(STEPS):
        z = z - gamma * HESSIAN * x
        x = (1 - c) * x + c * z
        path.append(x)
    np.testing.assert_allclose(descend(heavy_ball(RATE)), jnp.stack(path), rtol=1e-12)


def test_nesterov_visits_the_look_ahead_points():
    theta, v, path = jnp.ones(3), jnp.zeros(3), []
    for _ in range(STEPS):
        v = B1 * v - RATE * HESSIAN * (theta + B1 * v)
        theta = theta + v
        path.append(theta + B1 * v)
    np.testing.assert_allclose(descend(heavy_ball(RATE, nesterov=True)), jnp.stack(path), rtol=1e-12)


def test_independent_decay_omits_the_rate():
    tx = optax.chain(
        momentax.decays.decoupled(conventions.independent_to_decoupled(0.01, RATE)),
        optax.scale_by_learning_rate(RATE),
    )
    updates, _ = tx.update(jnp.zeros(3), tx.init(jnp.ones(3)), jnp.ones(3))
    np.testing.assert_allclose(updates, -0.01, rtol=1e-12)


def test_gain_is_the_length_under_a_constant_gradient():
    tx, state = momentax.heavy_ball(B1), momentax.heavy_ball(B1).init(jnp.zeros(1))
    for _ in range(400):
        u, state = tx.update(jnp.ones(1), state)
    np.testing.assert_allclose(u, conventions.gain(B1), rtol=1e-12)


def test_half_life_halves():
    assert B1 ** conventions.half_life(B1) == pytest.approx(0.5)


def test_optimal_heavy_ball_reaches_its_rate_on_a_quadratic():
    rate, b1 = conventions.heavy_ball_on_quadratic(0.1, 4.0)
    path = jnp.abs(descend(heavy_ball(rate, b1), steps=200)).max(axis=1)
    measured = (path[-1] / path[100]) ** (1 / 99)
    assert measured == pytest.approx(b1**0.5, rel=0.02)


def test_optimal_nesterov_reaches_its_rate_on_a_quadratic():
    rate, b1 = conventions.nesterov_on_quadratic(0.1, 4.0)
    path = jnp.abs(descend(heavy_ball(rate, b1, nesterov=True), steps=200)).max(axis=1)
    measured = (path[-1] / path[100]) ** (1 / 99)
    assert measured <= (1 - (0.1 / 4.0) ** 0.5) ** 0.5 + 1e-3
