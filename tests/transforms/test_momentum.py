"""heavy_ball, average_gradients, scale_by_adam and clip_global_norm against optax and against their definitions."""

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


def run(tx, steps=8, seed=0):
    gs = jax.random.normal(jax.random.key(seed), (steps, 5))
    params = jnp.zeros(5)
    _, updates = jax.lax.scan(lambda state, g: tx.update(g, state, params)[::-1], tx.init(params), gs)
    return gs, updates


@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_is_the_trace_of_optax(nesterov):
    _, ours = run(momentax.heavy_ball(0.9, nesterov=nesterov))
    _, theirs = run(optax.trace(0.9, nesterov=nesterov))
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_dampening_equal_to_the_decay_is_an_average_started_at_the_first_gradient():
    gs, ours = run(momentax.heavy_ball(0.9, dampening=0.9))
    mean = gs[0]
    for g, u in zip(gs[1:], ours[1:], strict=True):
        mean = 0.9 * mean + 0.1 * g
        np.testing.assert_allclose(u, mean, rtol=1e-13)
    _, from_zero = run(momentax.heavy_ball(0.9, dampening=0.9, dampen_first=True))
    _, average = run(momentax.average_gradients(0.9, debias=False))
    np.testing.assert_allclose(from_zero, average, rtol=1e-13)


@pytest.mark.parametrize("debias", [False, True])
def test_average_is_the_ema_of_optax(debias):
    _, ours = run(momentax.average_gradients(0.9, debias=debias))
    _, theirs = run(optax.ema(0.9, debias=debias))
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_constant_gradient_is_its_own_average_under_any_schedule(nesterov):
    tx = momentax.average_gradients(lambda count: 0.5 + 0.4 * jnp.sin(count) ** 2, nesterov=nesterov)
    g, state = jnp.array([3.0, -2.0]), tx.init(jnp.zeros(2))
    for _ in range(10):
        u, state = tx.update(g, state)
        np.testing.assert_allclose(u, g, rtol=1e-14)


def test_debiasing_divides_by_one_minus_the_product_of_decays():
    decays = jnp.array([0.5, 0.9, 0.1, 0.99])
    tx = momentax.average_gradients(lambda count: decays[count])
    state = tx.init(jnp.zeros(1))
    for t in range(4):
        _, state = tx.update(jnp.ones(1), state)
        np.testing.assert_allclose(state.mu_weight, 1 - jnp.prod(decays[: t + 1]), rtol=1e-14)


def test_a_decay_of_one_on_the_first_step_gives_zero_not_nan():
    tx = momentax.average_gradients(lambda count: jnp.where(count == 0, 1.0, 0.9))
    u, _ = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
    np.testing.assert_array_equal(u, 0)


def test_adam_is_the_adam_of_optax():
    _, ours = run(momentax.scale_by_adam(0.9, 0.99, 1e-3))
    _, theirs = run(optax.scale_by_adam(0.9, 0.99, 1e-3))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_adam_keeps_its_digits_on_the_first_step_in_float32():
    with jax.enable_x64(False):
        tx = momentax.scale_by_adam(b2=0.9999, eps=0.0)
        g = jnp.array([3.0, 1e-3, 7e4])
        u, _ = tx.update(g, tx.init(g))
        np.testing.assert_allclose(u, 1.0, rtol=4 * np.finfo(np.float32).eps)


def test_a_schedule_that_is_constant_is_the_constant():
    _, number = run(momentax.scale_by_adam(0.8, 0.95, 1e-6))
    _, schedule = run(momentax.scale_by_adam(lambda c: 0.8, lambda c: jnp.float64(0.95), lambda c: 1e-6))
    np.testing.assert_allclose(number, schedule, rtol=1e-12)


def test_clipping_bounds_the_joint_norm_and_spares_short_gradients():
    tx = momentax.clip_global_norm(1.0, eps=0.0)
    long = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    clipped, state = tx.update(long, tx.init(long))
    np.testing.assert_allclose(optax.tree.norm(clipped), 1.0, rtol=1e-14)
    np.testing.assert_allclose(clipped["b"] / clipped["a"][0], 4 / 3, rtol=1e-14)
    short = jax.tree.map(lambda x: x / 100, long)
    jax.tree.map(np.testing.assert_array_equal, tx.update(short, state)[0], short)
    zero = jax.tree.map(jnp.zeros_like, long)
    jax.tree.map(np.testing.assert_array_equal, tx.update(zero, state)[0], zero)


@pytest.mark.parametrize(
    ("factory", "arguments", "word"),
    [
        (momentax.heavy_ball, {"b1": 1.1}, "b1"),
        (momentax.average_gradients, {"b1": -0.1}, "b1"),
        (momentax.scale_by_adam, {"b2": 1.5}, "b2"),
        (momentax.scale_by_adam, {"eps": -1e-8}, "eps"),
        (momentax.clip_global_norm, {"max_norm": 0.0}, "max_norm"),
        (momentax.clip_global_norm, {"max_norm": float("nan")}, "max_norm"),
    ],
)
def test_coefficients_out_of_range_are_refused_by_name(factory, arguments, word):
    with pytest.raises(ValueError, match=f"{factory.__name__}.*`{word}`"):
        factory(**arguments)
