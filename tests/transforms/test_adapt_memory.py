"""The two-plane dual and the behaviour it implies for adaptive memory momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax
from momentax import routing


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def problem(seed):
    """A random instance of the model (1) in `_two_plane_coefficient.py`."""
    keys = jax.random.split(jax.random.key(seed), 8)
    g, d, x = (jax.random.normal(key, (6,)) for key in keys[:3])
    P = jnp.exp(jax.random.normal(keys[3], (6,)))
    lam, eta, mu = jnp.array([0.3, 0.2, 0.2]) * jnp.exp(jax.vmap(jax.random.normal)(keys[4:7]))
    a = 0.3 * jax.random.normal(keys[7])
    return g, d, a, P, x, lam, eta, mu


def solve(g, d, a, P, x, lam, eta, mu):
    beta = momentax.two_plane_coefficient(
        g, d, a, metric=P, params=x, learning_rate=eta, proximity=lam, weight_decay=mu
    )
    d_next = ((1 - beta) * g + (lam * P + beta) * d) / (1 + lam * P)
    return beta, (x - eta * d_next / P) / (1 + mu * eta) - x


def primal(z, g, d, a, P, x, lam, eta, mu):
    y = (1 + mu * eta) * (x + z) - x
    return (
        jnp.maximum(jnp.sum(g * z), a + jnp.sum(d * z))
        + jnp.sum(P * z * z) / (2 * eta)
        + mu / 2 * jnp.sum(P * (x + z) ** 2)
        + lam / (2 * eta * (1 + mu * eta)) * jnp.sum((P * y + eta * d) ** 2)
    )


@pytest.mark.parametrize("seed", range(40))
def test_complementary_slackness(seed):
    """The planes meet inside (0, 1); the memory is below at beta = 0 and above at beta = 1."""
    g, d, a, P, x, lam, eta, mu = problem(seed)
    beta, z = solve(g, d, a, P, x, lam, eta, mu)
    gap = a + jnp.sum((d - g) * z)
    if beta <= 0:
        assert gap <= 1e-12
    elif beta >= 1:
        assert gap >= -1e-12
    else:
        assert abs(gap) <= 1e-12


@pytest.mark.parametrize("seed", range(10))
def test_no_other_point_has_a_lower_model(seed):
    """The step minimises the strongly convex model: 200 perturbations of every size are worse."""
    instance = problem(seed)
    g, d, a, P, x, lam, eta, mu = instance
    _, z = solve(*instance)
    noise = jax.random.normal(jax.random.key(seed + 1000), (200, 6))
    noise = noise * jnp.logspace(-6, 0, 200)[:, None]
    value = lambda z: primal(z, g, d, a, P, x, lam, eta, mu)  # noqa: E731
    assert jnp.all(jax.vmap(value)(z[None] + noise) >= value(z) - 1e-12)


def test_every_regime_of_the_coefficient_occurs():
    betas = [float(solve(*problem(seed))[0]) for seed in range(40)]
    assert min(betas) == 0 and max(betas) == 1 and any(0 < beta < 1 for beta in betas)


def coefficient(g, d, lam=0.0):
    """The shipped rule: the memory plane estimated to first order, so a / eta = <g, d>."""
    return momentax.two_plane_coefficient(g, d, jnp.sum(g * d), proximity=lam, b1_max=None)


@pytest.mark.parametrize("lam", [0.0, 0.1, 2.0])
def test_first_order_closed_form(lam):
    """beta = (|g|^2 + 2 lam <g, d> - lam |d|^2) / |d - g|^2."""
    g, d = jax.random.normal(jax.random.key(0), (2, 7))
    expected = (g @ g + 2 * lam * g @ d - lam * d @ d) / ((d - g) @ (d - g))
    np.testing.assert_allclose(coefficient(g, d, lam), expected, rtol=1e-12)


def test_coefficient_of_simple_pairs():
    g, d = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    assert coefficient(g, d) == 0.5  # orthogonal, of equal length
    assert coefficient(g, -g) == 0.25  # opposite
    assert coefficient(g, g) == 0.0  # equal: any coefficient gives the same direction


def test_coefficient_is_invariant_under_scale_and_rotation():
    g, d = jax.random.normal(jax.random.key(0), (2, 5))
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (5, 5)))[0]
    np.testing.assert_allclose(coefficient(1e3 * rotation @ g, 1e3 * rotation @ d, 0.1), coefficient(g, d, 0.1))


def run(tx, params, gradients, **extra):
    state, path = tx.init(params), []
    for g in gradients:
        updates, state = tx.update(g, state, params, **extra)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state


def gradients(steps=12, shape=(4,), seed=0):
    return list(jax.random.normal(jax.random.key(seed), (steps, *shape)))


def test_a_linear_loss_is_plain_gradient_descent():
    g = [jnp.arange(1.0, 5.0)] * 8
    ours, _ = run(momentax.am_sgd(0.1), jnp.zeros(4), g)
    plain, _ = run(optax.sgd(0.1), jnp.zeros(4), g)
    np.testing.assert_allclose(ours, plain, rtol=1e-13)


def test_no_memory_is_plain_gradient_descent():
    ours, _ = run(momentax.am_sgd(0.1, b1_max=0.0, proximity=0.0), jnp.zeros(4), gradients())
    plain, _ = run(optax.sgd(0.1), jnp.zeros(4), gradients())
    np.testing.assert_allclose(ours, plain, rtol=1e-13)


def test_direction_stays_on_the_segment():
    tx = momentax.adapt_memory()
    state = tx.init(jnp.zeros(4))
    for g in gradients():
        before = state.mu
        u, state = tx.update(g, state)
        assert jnp.linalg.norm(u) <= max(jnp.linalg.norm(before), jnp.linalg.norm(g)) + 1e-12


def test_zero_gradient_flushes_and_a_spike_is_damped():
    lam, b1_max = 0.1, 0.9
    tx = momentax.adapt_memory(proximity=lam, b1_max=b1_max)
    _, state = tx.update(jnp.ones(4), tx.init(jnp.zeros(4)))
    u, _ = tx.update(jnp.zeros(4), state)
    np.testing.assert_allclose(u, lam / (1 + lam))  # d shrinks to lam / (1 + lam) of itself
    u, _ = tx.update(jnp.full(4, 1e9), state)
    np.testing.assert_allclose(u, 1e9 * (1 - b1_max) / (1 + lam), rtol=1e-8)


def test_infinite_proximity_freezes_the_memory():
    tx = momentax.adapt_memory(proximity=1e12)
    _, state = tx.update(jnp.ones(4), tx.init(jnp.zeros(4)))
    u, _ = tx.update(-jnp.ones(4), state)
    np.testing.assert_allclose(u, 1.0, rtol=1e-10)


def test_first_step_of_am_adamw_is_that_of_adamw():
    g = jnp.array([1e-3, 5.0, -2.0, 1e2])
    path, _ = run(momentax.am_adamw(0.1, proximity=0.0, weight_decay=0.2), jnp.ones(4), [g])
    np.testing.assert_allclose(path[0], 1 - 0.1 * 0.2 - 0.1 * jnp.sign(g), rtol=1e-4)


def test_global_and_leaf_scopes_differ_only_in_what_they_sum():
    one = {"a": jnp.zeros(4)}
    wrap = [{"a": g} for g in gradients()]
    for factory in (momentax.am_sgd, momentax.am_adamw):
        by_leaf, _ = run(factory(0.1, scope="leaf"), one, wrap)
        together, _ = run(factory(0.1, scope="global"), one, wrap)
        np.testing.assert_allclose(by_leaf[-1]["a"], together[-1]["a"], rtol=1e-12)


def test_stacked_layers_have_a_coefficient_each():
    stack = routing.matrix(in_axes=(1,), out_axes=(2,), batch_axes=(0,))
    g = gradients(shape=(3, 2, 5))
    for factory in (momentax.am_sgd, momentax.am_adamw):
        stacked, state = run(factory(0.1, scope="leaf", routing=stack), jnp.zeros((3, 2, 5)), g)
        layers = {str(i): jnp.zeros((2, 5)) for i in range(3)}
        apart, _ = run(factory(0.1, scope="leaf"), layers, [{str(i): x[i] for i in range(3)} for x in g])
        np.testing.assert_allclose(stacked[-1], jnp.stack([apart[-1][str(i)] for i in range(3)]), rtol=1e-12)


def test_the_loss_itself_as_offset():
    """On a convex loss the exact offset is at least the first-order one, and so is the memory it keeps."""
    curvature = jnp.array([1.0, 10.0])
    loss = lambda w: jnp.sum(curvature * w * w) / 2  # noqa: E731
    tx = momentax.am_sgd(0.05, b1_max=0.99, offset="value")
    params, state, losses = jnp.ones(2), tx.init(jnp.ones(2)), []
    for _ in range(80):
        value, g = jax.value_and_grad(loss)(params)
        updates, state = tx.update(g, state, params, value=value)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    assert losses[-1] < 1e-3 * losses[0]
    assert state[0].value_tm1 == losses[-1]
    with pytest.raises(ValueError, match="value=loss"):
        tx.update(g, state, params)


def test_the_ratio_of_rates_enters_with_the_learning_rate():
    """Given a schedule, the terminal weighs the offset by eta_{t-1} / eta_t; a constant rate changes nothing."""
    g = gradients(3)
    constant = lambda count: 0.1 * jnp.ones_like(count, float)  # noqa: E731
    chained = optax.chain(momentax.adapt_memory(), optax.scale_by_learning_rate(0.1))
    for rate in (0.1, constant):
        np.testing.assert_allclose(
            run(momentax.adapt_memory(rate), jnp.zeros(4), g)[0], run(chained, jnp.zeros(4), g)[0], rtol=1e-12
        )
    falling = lambda count: jnp.array([0.2, 0.1, 0.05])[count]  # noqa: E731
    tx = momentax.adapt_memory(falling, b1_max=0.999, proximity=0.0)
    _, state = tx.update(g[0], tx.init(jnp.zeros(4)))
    _, state = tx.update(g[1], state)
    d = g[0]
    beta = momentax.two_plane_coefficient(g[1], d, 0.2 * jnp.sum(g[1] * d), learning_rate=0.1, b1_max=0.999)
    np.testing.assert_allclose(state.mu, (1 - beta) * g[1] + beta * d, rtol=1e-12)


@pytest.mark.parametrize("factory", [momentax.am_sgd, momentax.am_adamw])
def test_skipping_a_non_finite_step_is_as_if_it_never_came(factory):
    good = gradients(6)
    bad = [*good[:3], good[0].at[1].set(jnp.nan), good[0].at[2].set(jnp.inf), *good[3:]]
    guarded = factory(0.1, skip_non_finite=True)
    path, state = run(guarded, jnp.ones(4), bad)
    clean, expected = run(guarded, jnp.ones(4), good)
    np.testing.assert_array_equal(path[-1], clean[-1])
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert jnp.isnan(run(factory(0.1), jnp.ones(4), bad)[0][-1]).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"metric": "full"}, "metric"),
        ({"scope": "layer"}, "scope"),
        ({"offset": "exact"}, "offset"),
        ({"weight_decay": 0.1}, "learning_rate="),
        ({"offset": "value"}, "learning_rate="),
        ({"learning_rate": 0.1, "offset": "value", "scope": "leaf"}, "scope='global'"),
        ({"b1_max": 1.5}, "b1_max"),
        ({"b1_max": 1.0, "metric": "diagonal"}, "b1_max"),
        ({"proximity": -0.1}, "proximity"),
    ],
)
def test_bad_choices_fail_in_the_factory(arguments, sentence):
    with pytest.raises(ValueError, match=f"adapt_memory.*{sentence}"):
        momentax.adapt_memory(**arguments)


def test_a_non_finite_loss_is_skipped_too():
    tx = momentax.am_sgd(0.1, offset="value", skip_non_finite=True)
    g, params = jnp.array([1.0, 2.0]), jnp.ones(2)
    state = tx.init(params)
    for value, moves in ((1.0, True), (jnp.nan, False), (0.9, True), (0.8, True)):
        updates, state = tx.update(g, state, params, value=value)
        assert jnp.isfinite(updates).all() and bool(jnp.any(updates)) == moves
