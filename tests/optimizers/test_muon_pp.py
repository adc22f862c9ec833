"""Muon++'s guarantees: weights stay in a ball of the spectral norm, and one learning rate does for every width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax

STEPS, RATE, KAPPA = 1000, 0.05, 1.5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def norms(tx, w):
    """Spectral norms of a weight (in, out) along a walk: random gradients, of sizes over six decades, often along w."""

    def step(carry, key):
        w, state = carry
        size, noise, along = jax.random.split(key, 3)
        g = jax.random.normal(noise, w.shape) - 3 * jax.random.bernoulli(along, 0.9) * w
        updates, state = tx.update(
            {"kernel": 10 ** jax.random.uniform(size, minval=-3, maxval=3) * g}, state, {"kernel": w}
        )
        w = w + updates["kernel"]
        return (w, state), jnp.linalg.norm(w, 2)

    def run(w):
        return jax.lax.scan(step, (w, tx.init({"kernel": w})), jax.random.split(jax.random.key(1), STEPS))[1]

    return np.asarray(jax.jit(run)(w))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_weights_stay_bounded(shape):
    """(4) with weight decay, which this walk comes near, and the sum of rates without."""
    w = 0.3 * jax.random.normal(jax.random.key(0), shape)
    radius = KAPPA * np.sqrt(shape[1] / shape[0])
    start, lam = np.linalg.norm(w, 2), 0.4
    for method in ("polar_express", "muon"):  # Muon's own polynomial would overshoot by a fifth
        path = norms(momentax.muon_pp(RATE, weight_decay=lam, kappa=KAPPA, method=method), w)
        bound = max(start, radius / lam)
        assert path.max() <= bound * (1 + 1e-12)
        assert path.max() > 0.7 * bound
    path = norms(momentax.muon_pp(RATE, weight_decay=None, kappa=KAPPA), w)
    assert (path <= (start + radius * RATE * np.arange(1, STEPS + 1)) * (1 + 1e-12)).all()


def test_the_change_of_outputs_does_not_depend_on_the_width():
    """Root mean square change of a layer's output by one step, relative to its random input, for widths 32 to 512."""
    changes = []
    for width in (32, 128, 512):
        keys = jax.random.split(jax.random.key(width), 3)
        x = jax.random.normal(keys[0], (8, width))
        g = x.T @ jax.random.normal(keys[1], (8, width))  # what backpropagation gives: rank 8
        params = {"kernel": jax.random.normal(keys[2], (width, width)) / np.sqrt(width)}
        tx = momentax.muon_pp(0.02, weight_decay=None)
        updates, _ = jax.jit(tx.update)({"kernel": g}, tx.init(params), params)
        changes.append(float(jnp.sqrt(jnp.mean((x @ updates["kernel"]) ** 2) / jnp.mean(x**2))))
    assert max(changes) < 2 * min(changes)
    assert 0.01 < min(changes) and max(changes) <= 0.02 * (1 + 1e-9)


def test_the_recommended_start_has_the_norm_of_the_aspect_ratio():
    for fan_in, fan_out in ((64, 1024), (256, 256), (1024, 64)):
        start = jax.nn.initializers.variance_scaling(min(1, fan_out / fan_in), "fan_in", "normal")
        norm = np.linalg.norm(start(jax.random.key(0), (fan_in, fan_out)), 2)
        assert 0.9 < norm / np.sqrt(fan_out / fan_in) < 2.2  # sqrt(fan_out / fan_in) + 1, in units of the smaller


def test_tangential_steps_keep_the_largest_singular_value():
    w = jax.random.normal(jax.random.key(0), (6, 4)) * jnp.array([[3.0, 1.0, 1.0, 1.0]])
    gs = jax.random.normal(jax.random.key(1), (50, 6, 4)) + jax.random.normal(jax.random.key(2), (1, 6, 4))

    def walk(tangent):
        tx = momentax.muon_pp(0.002, weight_decay=None, tangent=tangent)

        def step(carry, g):
            w, state = carry
            updates, state = tx.update({"kernel": g}, state, {"kernel": w})
            return (w + updates["kernel"], state), None

        (last, _), _ = jax.jit(lambda: jax.lax.scan(step, (w, tx.init({"kernel": w})), gs))()
        return abs(float(jnp.linalg.norm(last, 2) - jnp.linalg.norm(w, 2)))

    assert walk(True) < 0.1 * walk(False)


def test_rest_is_adamw_and_weights_decay_at_their_own_rates():
    params = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = momentax.muon_pp(0.5, rest_learning_rate=0.01)
    updates, _ = jax.jit(tx.update)(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.05, rtol=1e-12)
    np.testing.assert_allclose(updates["dense"]["bias"], -0.001, rtol=1e-12)
