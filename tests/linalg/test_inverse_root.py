"""Inverse roots against eigenvalues in numpy, and what happens where there is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax.linalg import inverse_root

METHODS = ["eigh", "newton"]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def with_eigenvalues(w, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(w), len(w))))[0]
    return (q * w) @ q.T, q


def numpy_root(w, q, root, floor=0.0):
    return (q * np.maximum(w, floor * np.max(w)) ** (-1 / root)) @ q.T


@pytest.mark.parametrize("method", METHODS)
def test_roots_against_numpy(method):
    w = np.geomspace(1e-3, 5.0, 6)
    a, q = with_eigenvalues(w)
    batch = jnp.asarray(np.stack([a, a[::-1, ::-1]])[:, None])
    roots = (1, 2, 4, 5)
    actual = jax.jit(lambda a: [inverse_root(a, p, method=method, floor=1e-13) for p in roots])(batch)
    for p, both in zip(roots, actual, strict=True):
        expected = numpy_root(w, q, p)
        assert both.shape == (2, 1, 6, 6)
        np.testing.assert_allclose(both[0, 0], expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
        np.testing.assert_allclose(both[1, 0][::-1, ::-1], expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_floor_is_a_share_of_the_largest_eigenvalue():
    """Of each eigenvalue with "eigh"; added to all, in units of the Frobenius norm, with "newton"."""
    w = np.array([4.0, 1.0, 1e-9, 0.0, -1e-15])
    a, q = with_eigenvalues(w)
    eigh, newton = jax.jit(lambda a: [inverse_root(a, method=m, floor=1e-4) for m in METHODS])(jnp.asarray(a))
    np.testing.assert_allclose(eigh, numpy_root(w, q, 2, floor=1e-4), atol=1e-9)
    np.testing.assert_allclose(newton, numpy_root(w + 1e-4 * np.linalg.norm(a), q, 2), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_zero_and_what_is_not_finite_and_size(method):
    a = with_eigenvalues(np.array([1.0, 2.0, 3.0]))[0].astype(np.float32)
    batch = jnp.asarray(np.stack([a, 0 * a, a * 1e36, a * 1e-36, a + np.float32("nan"), a - np.float32("inf")]))
    root = np.asarray(jax.jit(functools.partial(inverse_root, method=method))(batch))
    assert root.dtype == np.float32
    assert not np.any(root[1]) and np.all(np.isnan(root[4:]))
    np.testing.assert_allclose(root[0] @ a @ root[0], np.eye(3), atol=2e-5)
    np.testing.assert_allclose(root[2] * 1e18, root[0], atol=2e-5)
    np.testing.assert_allclose(root[3] * 1e-18, root[0], atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rank_deficient_matrices_of_low_precision_stay_bounded(dtype):
    """Rounding makes zero eigenvalues negative, which Newton's iteration must not see."""
    x = np.random.default_rng(1).standard_normal((4, 32, 2))
    a = jnp.asarray(x @ x.mT).astype(dtype)
    for root in jax.jit(lambda a: [inverse_root(a, method=m) for m in METHODS])(a):
        assert root.dtype == dtype
        bound = (1e-8 * np.linalg.norm(np.asarray(a, float), 2, axis=(1, 2))) ** -0.5
        assert np.all(np.linalg.norm(np.asarray(root, float), 2, axis=(1, 2)) < 1.01 * bound)


@pytest.mark.parametrize("method", METHODS)
def test_derivatives(method):
    a = jnp.asarray(with_eigenvalues(np.array([1.0, 2.0, 4.0, 0.5]))[0])
    rng = np.random.default_rng(2)
    d, w = (jnp.asarray(rng.standard_normal((4, 4))) for _ in range(2))
    f = functools.partial(inverse_root, root=4, method=method)

    @jax.jit
    def both(a, d):
        exact = jax.vjp(f, a)[1](w)[0]
        ahead, behind = f(jnp.stack([a + 1e-5 * d, a - 1e-5 * d]))
        return jnp.sum(exact * d), jnp.sum(w * (ahead - behind)) / 2e-5

    np.testing.assert_allclose(*both(a, d), rtol=1e-7)


@pytest.mark.parametrize(
    "error, call, message",
    [
        (ValueError, lambda: inverse_root(jnp.ones((2, 3))), "square"),
        (ValueError, lambda: inverse_root(jnp.ones(3)), "matrices"),
        (ValueError, lambda: inverse_root(jnp.eye(3), 0), "`root`"),
        (ValueError, lambda: inverse_root(jnp.eye(3), method="qr"), "'newton'"),
        (ValueError, lambda: inverse_root(jnp.eye(3), floor=1.0), "`floor`"),
        (ValueError, lambda: inverse_root(jnp.eye(3), method="newton", steps=0), "`steps`"),
        (TypeError, lambda: inverse_root(jnp.eye(3, dtype=int)), "floating"),
    ],
)
def test_bad_input(error, call, message):
    with pytest.raises(error, match=f"inverse_root.*{message}"):
        call()
