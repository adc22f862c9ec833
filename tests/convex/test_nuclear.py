"""The nuclear norm: rank, vectors and embeddings, and the subgradient by matrix products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax import convex, routing


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def points(seed=0, shape=(5, 7)):
    return jax.random.normal(jax.random.key(seed), shape)


def test_singular_values_that_are_zero_stay_zero():
    x = points(0, (6, 2)) @ points(1, (2, 5))
    K = convex.nuclear()
    y = K.subgradient(x)
    np.testing.assert_allclose(jnp.linalg.svd(y)[1], [1, 1, 0, 0, 0], atol=1e-13)
    np.testing.assert_allclose(K.value(x) + K.conjugate(y), jnp.sum(x * y), rtol=1e-13)
    z = points(2, (6, 5))
    assert K.value(z) >= K.value(x) + jnp.sum(y * (z - x))


@pytest.mark.parametrize("steps", [1, 3, 10, 25])
def test_iterations_stay_in_the_ball_and_approach_the_subgradient(steps):
    """<x, u> rises to K(x) with the steps; u never leaves the ball, whose bound lam w therefore keeps."""
    x = points(0, (6, 2)) @ points(1, (2, 5)) + 1e-3 * points(2, (6, 5))
    K, exact = convex.nuclear(steps), convex.nuclear()
    u = K.subgradient(x)
    assert exact.gauge(u) <= 1 + 1e-14 and jnp.isfinite(K.conjugate(u))
    fewer = jnp.sum(x * convex.nuclear(max(steps - 1, 1)).subgradient(x))
    assert fewer - 1e-12 <= jnp.sum(x * u) <= K.value(x) + 1e-12
    if steps == 25:
        np.testing.assert_allclose(u, exact.subgradient(x), atol=1e-12)


@pytest.mark.parametrize("K", [convex.nuclear(), convex.nuclear(5)], ids=lambda K: K.name)
@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (routing.vector(), (5, 7)),
        (routing.vector(batch_axes=(0,)), (3, 4)),
        (routing.embedding(), (5, 7)),
        (routing.embedding(1, 2, batch_axes=(0,)), (2, 5, 7)),
        (None, (7,)),
        (None, ()),
    ],
    ids=str,
)
def test_what_is_no_matrix_takes_the_sign(K, rule, shape):
    K, x = K.on(rule) if rule else K, points(shape=shape)
    np.testing.assert_array_equal(K.subgradient(x), jnp.sign(x))
    np.testing.assert_allclose([K.value(x), K.gauge(x)], [jnp.sum(jnp.abs(x)), jnp.max(jnp.abs(x))], rtol=1e-14)
