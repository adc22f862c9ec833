"""The polar factor: exactly from singular values, and by products alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax.linalg import newton_schulz, polar, polar_by_products

BOTH = [polar, lambda x: newton_schulz(x, 40)]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def with_singular_values(s, m=6, n=9):
    """A matrix with these singular values, its bases, and the shape (m, n), m <= n."""
    u = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (m, m)))[0]
    v = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (n, n)))[0][:, :m]
    return u @ (s[:, None] * v.T), u, v


@pytest.mark.parametrize("factor", BOTH, ids=["polar", "newton_schulz"])
def test_singular_values_become_one_and_vectors_stay(factor):
    x, u, v = with_singular_values(jnp.geomspace(1e-4, 1e3, 6))
    np.testing.assert_allclose(factor(x), u @ v.T, atol=1e-8)
    np.testing.assert_allclose(factor(x.T), factor(x).T, atol=1e-8)


@pytest.mark.parametrize("factor", BOTH, ids=["polar", "newton_schulz"])
def test_rank_is_kept(factor):
    x, u, v = with_singular_values(jnp.array([1.0, 3.0, 0.0, 2.0, 0.0, 0.0]))
    expected = u[:, [0, 1, 3]] @ v[:, [0, 1, 3]].T
    if factor is not polar:  # 40 steps amplify the rounding errors of x, which polar drops
        factor = lambda x: newton_schulz(x, 10)  # noqa: E731
    np.testing.assert_allclose(factor(x), expected, atol=1e-11)
    assert not jnp.any(factor(jnp.zeros((3, 5))))


def test_polar_drops_what_is_rounding_and_nothing_else():
    eps = float(jnp.finfo(float).eps)
    x = jnp.diag(jnp.array([2.0, 2 * 4 * 1.1 * eps, 2 * 4 * 0.9 * eps, 0.0]))
    np.testing.assert_allclose(polar(x), jnp.diag(jnp.array([1.0, 1.0, 0.0, 0.0])), atol=1e-14)


@pytest.mark.parametrize("factor", BOTH, ids=["polar", "newton_schulz"])
def test_matrices_of_a_batch_are_independent(factor):
    """NaN and infinity stay in their matrix, and sizes at the ends of float32 are no harm."""
    x = jax.random.normal(jax.random.key(2), (2, 3, 4, 4)).astype(jnp.float32)
    sizes = jnp.array([[1.0, 1e-30, 1e36], [1e-20, 1.0, 1.0]], jnp.float32)
    bad = (sizes[..., None, None] * x).at[1, 1, 0, 2].set(jnp.nan).at[1, 2, 3, 3].set(-jnp.inf)
    actual, expected = factor(bad), factor(x)
    assert actual.dtype == jnp.float32
    assert jnp.all(jnp.isnan(actual[1, 1:]))
    for index in ((0, 0), (0, 1), (0, 2), (1, 0)):
        np.testing.assert_allclose(actual[index], expected[index], atol=1e-4)
        np.testing.assert_allclose(expected[index], factor(x[index]), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(steps):
    s = jnp.array([1.0, 0.3, 0.05, 1e-3, 0.7, 1e-6])
    x, u, v = with_singular_values(s)
    expected = s / jnp.linalg.norm(s)
    for _ in range(steps):
        expected = (15 * expected - 10 * expected**3 + 3 * expected**5) / 8
    np.testing.assert_allclose(u.T @ newton_schulz(x, steps) @ v, jnp.diag(expected), atol=1e-14)
    small = (15 / 8) ** steps * 1e-6 / float(jnp.linalg.norm(s))
    np.testing.assert_allclose(expected[-1], small, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_newton_schulz_never_leaves_the_unit_ball(dtype):
    """Also where a singular value starts at 1, the end of the interval: rank one."""
    one = jnp.ones((32, 16), dtype)
    x = jnp.stack([one, jax.random.normal(jax.random.key(3), (32, 16), dtype), one + jnp.eye(32, 16, dtype=dtype)])
    for steps in (1, 2, 6, 30):
        largest = jnp.linalg.svd(newton_schulz(x, steps).astype(float))[1].max()
        assert largest <= 1 + 20 * jnp.finfo(dtype).eps, steps


@pytest.mark.parametrize("factor", BOTH, ids=["polar", "newton_schulz"])
def test_products_are_as_precise_as_the_dtype(factor):
    """Accelerators would multiply in bfloat16 or TF32 unless told otherwise."""
    text = jax.jit(factor).lower(jnp.zeros((4, 6), jnp.float32)).as_text()
    products = re.findall(r"stablehlo\.dot_general.*", text)
    assert products and all("precision = [HIGHEST, HIGHEST]" in product for product in products)


def test_newton_schulz_multiplies_on_the_shorter_side():
    for shape in ((4, 64), (64, 4)):
        text = jax.jit(newton_schulz, static_argnums=1).lower(jnp.zeros(shape), 3).as_text()
        assert "tensor<4x4x" in text and "tensor<64x64x" not in text


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_products_reach_the_polar_factor(dtype):
    """As far as the condition of the matrix allows; orthogonal to rounding in any case."""
    eps = float(jnp.finfo(dtype).eps)
    spread = [jnp.geomspace(1e-4, 1, 12), jnp.ones(12).at[1:].set(1e-4), jnp.full(12, 7.0)]
    cases = [with_singular_values(s, 12, 15) for s in spread]
    y = jax.jit(polar_by_products)(jnp.stack([x for x, _, _ in cases]).astype(dtype))
    assert y.dtype == dtype
    for factor, (_, u, v) in zip(y.astype(float), cases, strict=True):
        np.testing.assert_allclose(factor @ factor.T, jnp.eye(12), atol=20 * eps)
        np.testing.assert_allclose(factor, u @ v.T, atol=10 * eps / 1e-4)


def test_products_keep_to_the_smallest_singular_value_that_was_asked_for():
    s = jnp.geomspace(1e-9, 1, 6)
    x, u, v = with_singular_values(s)
    actual = jnp.diag(u.T @ polar_by_products(x, 1e-5) @ v)
    np.testing.assert_allclose(actual[3:], 1, atol=1e-12)
    assert jnp.all((0 < actual[:2]) & (actual[:2] < 0.9))


def test_products_have_the_derivative_of_the_polar_factor():
    """For a square matrix: d(U V') = U (K / (s_i + s_j)) V', K = U' d V - V' d' U."""
    x, d, w = jax.random.normal(jax.random.key(4), (3, 5, 5))
    u, s, v = jnp.linalg.svd(x)
    k = u.T @ d @ v.T
    expected = u @ ((k - k.T) / (s[:, None] + s[None])) @ v
    exact = jax.jit(lambda x: jax.vjp(polar_by_products, x)[1](w)[0])(x)
    np.testing.assert_allclose(jnp.sum(exact * d), jnp.sum(w * expected), rtol=1e-9)


@pytest.mark.parametrize("smallest", [0.0, 1.0, -1.0, float("nan")])
def test_products_need_a_smallest_singular_value(smallest):
    with pytest.raises(ValueError, match="polar_by_products.*`smallest`"):
        polar_by_products(jnp.eye(2), smallest)
