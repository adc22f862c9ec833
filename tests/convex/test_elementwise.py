"""Fenchel-Young, conjugates and subgradients of the elementwise convex functions, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax import convex

FUNCTIONS = [
    convex.l1(),
    convex.quadratic(),
    convex.huber(0.4),
    convex.dead_zone(0.3),
    convex.tanh(2.5),
    convex.relativistic(0.7),
]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=FUNCTIONS, ids=lambda function: function.name)
def K(request):
    return request.param


def points(seed=0, scale=1.5):
    return scale * jax.random.normal(jax.random.key(seed), (5, 7))


def test_fenchel_young_holds_with_equality_at_the_subgradient(K):
    x = points()
    y = K.subgradient(x)
    np.testing.assert_allclose(K.value(x) + K.conjugate(y), jnp.sum(x * y), rtol=1e-13)


def test_fenchel_young_inequality_everywhere_in_the_domain(K):
    for seed in range(20):
        x, y = points(seed), jnp.clip(points(seed + 100), -1, 1)
        assert K.value(x) + K.conjugate(y) >= jnp.sum(x * y) - 1e-12


def test_subgradient_inequality(K):
    for seed in range(20):
        x, z = points(seed), points(seed + 100)
        assert K.value(z) >= K.value(x) + jnp.sum(K.subgradient(x) * (z - x)) - 1e-12


def test_subgradient_is_the_gradient_of_the_value(K):
    x = points()
    np.testing.assert_allclose(jax.grad(K.value)(x), K.subgradient(x), rtol=1e-12, atol=1e-15)


def test_conjugate_is_the_supremum(K):
    grid = jnp.linspace(-60.0, 60.0, 240_001)
    for y in (-0.9, -0.2, 0.0, 0.5, 0.95):
        supremum = jnp.max(grid * y - jax.vmap(K.value)(grid))
        np.testing.assert_allclose(K.conjugate(jnp.array([y])), supremum, atol=1e-6)


def test_domain_of_the_conjugate_is_where_the_gauge_is_at_most_one(K):
    inside, outside = jnp.full((3,), 0.999), jnp.array([0.0, 1.001, 0.0])
    assert jnp.isfinite(K.conjugate(inside)) and K.gauge(inside) <= 1
    if K.name == "quadratic":
        assert jnp.isfinite(K.conjugate(outside)) and K.gauge(outside) == 0
    else:
        assert jnp.isinf(K.conjugate(outside)) and K.gauge(outside) > 1


def test_zero_maps_to_zero_and_oddness(K):
    x = points()
    assert not jnp.any(K.subgradient(jnp.zeros(4)))
    np.testing.assert_array_equal(K.subgradient(-x), -K.subgradient(x))


def test_large_inputs_do_not_overflow(K):
    x = jnp.array([-1e30, 1e30], jnp.float32)
    assert jnp.all(jnp.isfinite(K.subgradient(x)))
    if K.name != "quadratic" and not K.name.startswith(("relativistic", "huber")):  # these square their input
        assert jnp.isfinite(K.value(x))


@pytest.mark.parametrize(
    ("factory", "value"),
    [
        (convex.huber, 0.0),
        (convex.huber, -1.0),
        (convex.tanh, 0.0),
        (convex.relativistic, 0.0),
        (convex.dead_zone, -1.0),
    ],
)
def test_impossible_parameters_are_refused_by_name(factory, value):
    with pytest.raises(ValueError, match=factory.__name__):
        factory(value)
