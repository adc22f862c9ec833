"""The largest singular value against a decomposition, and starts that help."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax.linalg import power_iteration


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


run = jax.jit(power_iteration, static_argnums=1)


def gapped(m, n, seed=0):
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((k, k)))[0] for k in (m, n))
    s = 2.0 ** -np.arange(min(m, n))
    return (u[:, : len(s)] * s) @ v[:, : len(s)].T, u[:, 0], v[:, 0]


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (1, 4), (4, 1)])
def test_against_the_decomposition(shape):
    x, u, v = gapped(*shape)
    sigma, left, right = run(jnp.asarray(np.stack([x, -3 * x])), 30)
    assert sigma.shape == (2,) and left.shape == (2, shape[0]) and right.shape == (2, shape[1])
    np.testing.assert_allclose(sigma, [1, 3], rtol=1e-14)
    np.testing.assert_allclose(np.abs(left @ u), 1, rtol=1e-13)
    np.testing.assert_allclose(np.abs(right @ v), 1, rtol=1e-13)
    np.testing.assert_allclose(left[1] * right[1, :1], -left[0] * right[0, :1], atol=1e-12)


def test_errors_fall_by_the_square_of_the_gap_and_never_exceed():
    x, _, v = gapped(6, 6)
    tangents = []
    right = None
    for _ in range(4):
        sigma, _, right = run(jnp.asarray(x), 1, right)
        tangents.append(np.linalg.norm(right - v * (right @ v)) / abs(right @ v))
        assert sigma <= 1 + 1e-14
    np.testing.assert_allclose(np.divide(tangents[2:], tangents[1:-1]), 1 / 4, rtol=0.05)


def test_warm_starts_continue_and_bad_ones_are_replaced():
    x = jnp.asarray(gapped(5, 6)[0])
    cold = run(x, 5)
    for one, other in zip(run(x, 3, run(x, 2)[2]), cold, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    batch, starts = jnp.stack([x] * 3), jnp.stack([jnp.zeros(6), jnp.full(6, jnp.nan), cold[2]])
    sigma, _, v = run(batch, 5, starts)
    np.testing.assert_allclose(v[:2], jnp.stack([cold[2]] * 2), rtol=1e-12)
    assert abs(sigma[2] - 1) < abs(sigma[0] - 1)


def test_zero_and_what_is_not_finite_and_size():
    x = jnp.asarray(gapped(4, 3)[0], jnp.float32)
    start = jnp.array([0.0, 2.0, 0.0], jnp.float32)
    sigma, u, v = run(jnp.stack([x, 0 * x, 1e-30 * x, 1e36 * x, x.at[0, 0].set(jnp.nan)]), 20, start)
    np.testing.assert_allclose(sigma[:4], [1, 0, 1e-30, 1e36], rtol=1e-5)
    assert np.all(np.isfinite(u[:4])) and np.all(np.isfinite(v[:4])) and np.isnan(sigma[4])
    np.testing.assert_array_equal(v[1], [0, 1, 0])
    half = run(x.astype(jnp.bfloat16), 20)
    assert all(y.dtype == jnp.float32 for y in half)
    np.testing.assert_allclose(half[0], 1, atol=0.01)


def test_the_derivative_of_sigma_is_the_rank_one_matrix():
    x, u, v = gapped(4, 6)
    slope = jax.jit(jax.grad(lambda x: power_iteration(x, 40)[0]))(jnp.asarray(x))
    np.testing.assert_allclose(slope, np.outer(u, v), atol=1e-12)


@pytest.mark.parametrize(
    "error, call, message",
    [
        (ValueError, lambda: power_iteration(jnp.ones(3), 2), "matrices"),
        (ValueError, lambda: power_iteration(jnp.ones((3, 0)), 2), "entries"),
        (ValueError, lambda: power_iteration(jnp.ones((3, 2)), 0), "`steps`"),
        (ValueError, lambda: power_iteration(jnp.ones((3, 2)), 2, jnp.ones(3)), r"`start`.*\(2,\)"),
        (TypeError, lambda: power_iteration(jnp.ones((3, 2), int), 2), "floating"),
    ],
)
def test_bad_input(error, call, message):
    with pytest.raises(error, match=f"power_iteration.*{message}"):
        call()
