"""FISMO against Muon: the same where gradients are as small as networks have them, unless statistics are normalised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax

OUT, IN, STEPS = 12, 16, 40


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def least_squares(seed=0):
    """The gradient of 1/2 |A (W - W*) B|^2 for W (in, out), A and B of condition number 30, and a start."""
    keys = jax.random.split(jax.random.key(seed), 4)

    def conditioned(key, n):
        u, _, v = jnp.linalg.svd(jax.random.normal(key, (n, n)))
        return u * jnp.logspace(0, -1.5, n)[None] @ v

    a, b = conditioned(keys[0], IN), conditioned(keys[1], OUT)
    target = jax.random.normal(keys[2], (IN, OUT))
    return lambda w: a.T @ a @ (w - target) @ b @ b.T, jax.random.normal(keys[3], (IN, OUT))


def updates_of(tx, size):
    """All updates of a run whose gradients are scaled to entries of about `size`."""
    gradient, start = least_squares()
    size = size / jnp.sqrt(jnp.mean(gradient(start) ** 2))

    def step(carry, _):
        w, state = carry
        u, state = tx.update({"kernel": size * gradient(w)}, state, {"kernel": w})
        return (w + u["kernel"], state), u["kernel"]

    def run(w):
        return jax.lax.scan(step, (w, tx.init({"kernel": w})), length=STEPS)[1]

    return np.asarray(jax.jit(run)(start))


def test_as_published_it_is_muon_at_the_size_of_network_gradients():
    fismo = updates_of(momentax.fismo(0.02, method="exact"), 1e-3)
    muon = updates_of(momentax.muon(0.02, nesterov=False, method="exact", scale="none"), 1e-3)
    assert np.linalg.cond(fismo).max() < 1 + 1e-4
    np.testing.assert_allclose(fismo, muon, atol=0.02 * 1e-4)


def test_normalized_statistics_whiten_at_every_size():
    small = updates_of(momentax.fismo(0.02, method="exact", normalize_stats=True), 1e-3)
    large = updates_of(momentax.fismo(0.02, method="exact", normalize_stats=True), 1e3)
    np.testing.assert_allclose(small, large, rtol=1e-6, atol=1e-9)
    conditions = np.linalg.cond(small)
    print(conditions)
    assert 20 < conditions[-1] < 100


def test_a_constant_matrix_gradient_of_rank_one_moves_along_itself():
    """Whitening a rank-one gradient leaves it of rank one: u and v are eigenvectors of P and Q."""
    u, v = jnp.arange(1.0, 5.0)[:, None], jnp.array([[1.0, -2.0, 0.5]])
    params = {"kernel": jnp.zeros((4, 3))}
    tx = momentax.fismo(1.0, method="exact", normalize_stats=True, scale="moonlight")
    update = jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(2):
        step, state = update({"kernel": u * v}, state, params)
    cosine = jnp.sum(step["kernel"] * (u * v)) / (jnp.linalg.norm(step["kernel"]) * jnp.linalg.norm(u * v))
    np.testing.assert_allclose(cosine, -1, rtol=1e-12)


def test_rest_is_adamw_and_weights_decay_at_their_own_rates():
    params = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = momentax.fismo(0.5, weight_decay=0.1, rest_learning_rate=0.01)
    updates, _ = jax.jit(tx.update)(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.05, rtol=1e-12)  # a zero momentum gives no direction
    np.testing.assert_allclose(updates["dense"]["bias"], -0.001, rtol=1e-12)
