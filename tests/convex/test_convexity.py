"""Fenchel-Young, subgradients, conjugates and gauges of every convex function, in float64."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convex.functions import BY_FACTORY, ELEMENTWISE, FUNCTIONS, NORMS, name

from momentax import convex


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=FUNCTIONS, ids=name)
def K(request):
    return request.param


@pytest.fixture(params=NORMS, ids=name)
def norm(request):
    return request.param


def points(seed=0, count=None):
    shape = (5, 7) if count is None else (count, 5, 7)
    return 1.5 * jax.random.normal(jax.random.key(seed), shape)


def inner(x, y):
    return jnp.sum(x * y, axis=(-2, -1))


def test_every_exported_function_is_tested():
    exported = {member for member in vars(convex).values() if inspect.isfunction(member)}
    assert exported == set(BY_FACTORY)


def test_fenchel_young_holds_with_equality_at_the_subgradient(K):
    x = points()
    y = K.subgradient(x)
    np.testing.assert_allclose(K.value(x) + K.conjugate(y), inner(x, y), rtol=1e-13)


def test_fenchel_young_inequality_everywhere_in_the_domain(K):
    @jax.vmap
    def slack(x, y):
        y = y / jnp.maximum(K.gauge(y), 1)
        return K.value(x) + K.conjugate(y) - inner(x, y)

    assert jnp.all(slack(points(0, 200), points(1, 200)) >= -1e-12)
    assert jnp.all(slack(points(0, 200), 0.2 * points(1, 200)) >= -1e-12)


def test_subgradient_inequality(K):
    slack = jax.vmap(lambda x, z: K.value(z) - K.value(x) - inner(K.subgradient(x), z - x))
    assert jnp.all(slack(points(0, 200), points(1, 200)) >= -1e-12)


def test_subgradient_is_the_gradient_of_the_value(K):
    x = points()
    np.testing.assert_allclose(jax.grad(K.value)(x), K.subgradient(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("factory", ELEMENTWISE, ids=lambda factory: factory.__name__)
def test_conjugate_is_the_supremum(factory):
    (K,) = BY_FACTORY[factory]
    grid = jnp.linspace(-60.0, 60.0, 240_001)
    values = jax.vmap(K.value)(grid)
    for y in (-0.9, -0.2, 0.0, 0.5, 0.95):
        np.testing.assert_allclose(K.conjugate(jnp.array([y])), jnp.max(grid * y - values), atol=1e-6)


def test_domain_of_the_conjugate_is_where_the_gauge_is_at_most_one(K):
    y = points()
    size = K.gauge(y)
    if K.name == "quadratic":
        assert size == 0 and jnp.isfinite(K.conjugate(1e6 * y))
        return
    np.testing.assert_allclose(K.gauge(-3 * y), 3 * size, rtol=1e-13)
    assert jnp.isfinite(K.conjugate(0.999 * y / size)) and jnp.isfinite(K.conjugate(y / size))
    assert jnp.isinf(K.conjugate(1.001 * y / size))


def test_the_gauge_is_the_dual_norm(norm):
    """sup <x, y> / K(x): never exceeded, and reached at the gradient of the gauge."""
    y = points()
    ratios = jax.vmap(lambda x: inner(x, y) / norm.value(x))(points(1, 500))
    assert jnp.max(ratios) <= norm.gauge(y)
    x = jax.grad(norm.gauge)(y)
    np.testing.assert_allclose([inner(x, y), norm.value(x)], [norm.gauge(y), 1], rtol=1e-13)


def test_subgradients_of_norms_do_not_depend_on_the_scale_and_fill_the_dual_ball(norm):
    x = points()
    y = norm.subgradient(x)
    np.testing.assert_allclose(norm.gauge(y), 1, rtol=1e-13)
    for scale in (1e-9, 1e9):
        np.testing.assert_allclose(norm.subgradient(scale * x), y, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(norm.value(scale * x), scale * norm.value(x), rtol=1e-13)


def test_zero_maps_to_zero_and_oddness(K):
    x, zero = points(), jnp.zeros((5, 7))
    assert not jnp.any(K.subgradient(zero)) and jnp.isfinite(K.conjugate(zero)) and K.gauge(zero) == 0
    np.testing.assert_allclose(K.subgradient(-x), -K.subgradient(x), rtol=1e-15)


@pytest.mark.parametrize("shape", [(), (6,), (0, 3)], ids=str)
def test_leaves_of_every_rank_have_one_unit_or_none(norm, shape):
    """Without a rule, what is no matrix is one vector: its subgradient fills the dual ball."""
    if norm.smallest > np.prod(shape, dtype=int):
        return
    x = 2 + jnp.arange(np.prod(shape, dtype=float)).reshape(shape)
    y = norm.subgradient(x)
    assert y.shape == shape and y.dtype == x.dtype
    np.testing.assert_allclose(norm.gauge(y), 1.0 if x.size else 0.0, rtol=1e-14)
    np.testing.assert_allclose(norm.value(x), jnp.sum(x * y), rtol=1e-14)


def test_large_inputs_do_not_overflow(K):
    x = jnp.array([-1e30, 1e30, 1e30], jnp.float32)
    assert jnp.all(jnp.isfinite(K.subgradient(x)))
    if not K.name.startswith(("quadratic", "huber", "l2", "row_norm")):  # these square their input
        assert jnp.isfinite(K.value(x))


@pytest.mark.parametrize("shape", [(3,), (4, 3)], ids=str)
def test_not_a_number_shows(K, shape):
    assert jnp.any(jnp.isnan(K.subgradient(jnp.ones(shape).at[(0,) * len(shape)].set(jnp.nan))))


REFUSED = [
    (lambda: convex.huber(0.0), ValueError, "huber.*`e`.*above 0"),
    (lambda: convex.huber(-1.0), ValueError, "huber.*`e`.*above 0"),
    (lambda: convex.huber(float("inf")), ValueError, "huber.*finite"),
    (lambda: convex.huber(None), TypeError, "huber.*`e`.*number.*None"),
    (lambda: convex.huber(lambda count: 0.1), TypeError, "huber.*`e`.*number"),
    (lambda: convex.tanh(0.0), ValueError, "tanh.*`slope`"),
    (lambda: convex.tanh(True), TypeError, "tanh.*`slope`"),
    (lambda: convex.relativistic(float("nan")), ValueError, "relativistic.*`e`"),
    (lambda: convex.dead_zone(-1.0), ValueError, "dead_zone.*`e`.*negative"),
    (lambda: convex.dead_zone("0.1"), TypeError, "dead_zone.*`e`"),
    (lambda: convex.l2("layer"), ValueError, "l2.*`scope`.*'leaf', 'global'"),
    (lambda: convex.lp(1), ValueError, r"lp.*l1\(\)"),
    (lambda: convex.lp(float("inf")), ValueError, r"lp.*linf\(\)"),
    (lambda: convex.lp(0.5), ValueError, "lp.*`p`.*above 1"),
    (lambda: convex.lp(float("nan")), ValueError, "lp.*`p`"),
    (lambda: convex.lp([2.0]), TypeError, "lp.*`p`.*number"),
    (lambda: convex.top_k(0), ValueError, "top_k.*`k`.*integer, 1 or more"),
    (lambda: convex.top_k(2.0), ValueError, "top_k.*`k`.*integer"),
    (lambda: convex.top_k(True), ValueError, "top_k.*`k`.*integer"),
    (lambda: convex.nuclear(0), ValueError, "nuclear.*`steps`.*integer, 1 or more"),
    (lambda: convex.nuclear(2.5), ValueError, "nuclear.*`steps`.*integer"),
]


@pytest.mark.parametrize(
    ("make", "error", "says"), REFUSED, ids=[f"{says}-{i}" for i, (*_, says) in enumerate(REFUSED)]
)
def test_impossible_parameters_are_refused_by_name(make, error, says):
    with pytest.raises(error, match=says):
        make()
