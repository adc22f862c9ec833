"""What the norms leave alone, which of equal entries they take, and the sizes that they survive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convex.functions import NORMS, name

from momentax import convex


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def points(seed=0, shape=(5, 7)):
    return jax.random.normal(jax.random.key(seed), shape)


def rotation(size, seed=0):
    return jnp.linalg.qr(points(seed, (size, size)))[0]


def permuted(x, seed=3):
    """The entries of x in another order, half of them with the other sign."""
    keys = jax.random.split(jax.random.key(seed))
    signs = jnp.sign(jax.random.normal(keys[0], x.shape))
    return signs * jax.random.permutation(keys[1], x.ravel()).reshape(x.shape)


ROTATED = lambda x: (rotation(x.size) @ x.ravel()).reshape(x.shape)  # noqa: E731
ROWS_ROTATED = lambda x: rotation(5) @ x[:, ::-1]  # noqa: E731  the last axis counts the rows
TURNED_ON_BOTH_SIDES = lambda x: rotation(5) @ x @ rotation(7)  # noqa: E731
INVARIANCES = [
    *((K, permuted) for K in (convex.l1(), convex.l2(), convex.lp(1.5), convex.lp(3), convex.linf(), convex.top_k(3))),
    (convex.l2(), ROTATED),
    (convex.l2(scope="global"), ROTATED),
    (convex.row_norm(), ROWS_ROTATED),
    (convex.nuclear(), TURNED_ON_BOTH_SIDES),
    (convex.nuclear(steps=4), TURNED_ON_BOTH_SIDES),
]


@pytest.mark.parametrize(("K", "turn"), INVARIANCES, ids=[K.name for K, _ in INVARIANCES])
def test_isometries_pass_through(K, turn):
    x = points()
    np.testing.assert_allclose(K.value(turn(x)), K.value(x), rtol=1e-13)
    np.testing.assert_allclose(K.gauge(turn(x)), K.gauge(x), rtol=1e-13)
    np.testing.assert_allclose(K.subgradient(turn(x)), turn(K.subgradient(x)), atol=1e-12)


def test_the_first_of_equal_entries_moves():
    x = jnp.array([[1.0, 3.0, -3.0], [-3.0, 3.0, 0.0]])
    np.testing.assert_array_equal(convex.linf().subgradient(x), [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(convex.linf().subgradient(x.T), [[0, -1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(convex.top_k(3).subgradient(x), [[0, 1, -1], [-1, 0, 0]])
    np.testing.assert_array_equal(convex.top_k(4).subgradient(x.T), [[0, -1], [1, 1], [-1, 0]])


def test_the_largest_entries_span_the_functions_between():
    """top_k is linf at k = 1 and l1 at k = n; lp is l2 at p = 2."""
    x = points()
    for one, other in (
        (convex.top_k(1), convex.linf()),
        (convex.top_k(35), convex.l1()),
        (convex.lp(2), convex.l2()),
        (convex.lp(1 + 1e-9), convex.l1()),
    ):
        np.testing.assert_allclose(one.subgradient(x), other.subgradient(x), atol=1e-7)
        np.testing.assert_allclose([one.value(x), one.gauge(x)], [other.value(x), other.gauge(x)], rtol=1e-7)


ANY_SIZE = [K for K in NORMS if not K.name.startswith(("l2", "row_norm"))] + [convex.nuclear(steps=6)]
SQUARES = [convex.l2(), convex.l2(scope="global"), convex.row_norm()]


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("K", ANY_SIZE, ids=name)
def test_any_size_of_float32_is_scaled_rightly(K, size):
    x = points().astype(jnp.float32)
    np.testing.assert_allclose(K.subgradient(size * x), K.subgradient(x), atol=1e-5)
    np.testing.assert_allclose(K.value(size * x), size * K.value(x), rtol=1e-5)


@pytest.mark.parametrize("K", SQUARES, ids=name)
def test_sums_of_squares_are_scaled_rightly_in_the_stated_range_and_stay_in_the_ball_outside(K):
    x = points(shape=(64, 64)).astype(jnp.float32)
    for size in (1e-13, 1e16):
        np.testing.assert_allclose(K.subgradient(size * x), K.subgradient(x), atol=1e-5)
    for size in jnp.geomspace(1e-24, 1e-14, 31):  # where squares become too small for float32, one after the other
        assert K.gauge(K.subgradient((size * x).astype(jnp.float32))) <= 1 + 1e-5
    assert not jnp.any(K.subgradient(1e25 * x))


def test_a_global_norm_reads_a_tree_as_one_vector():
    tree = {"a": points(0, (2, 3)), "b": {"c": points(1, (4,)).astype(jnp.float32), "d": points(2, ())}}
    flat = jnp.concatenate([leaf.ravel().astype(float) for leaf in jax.tree.leaves(tree)])
    K, one_leaf = convex.l2(scope="global"), convex.l2()
    for function in ("value", "gauge", "conjugate"):
        np.testing.assert_allclose(getattr(K, function)(tree), getattr(one_leaf, function)(flat), rtol=1e-6)
    u = K.subgradient(tree)
    assert jax.tree.map(jnp.result_type, u) == jax.tree.map(jnp.result_type, tree)
    u = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(u)])
    np.testing.assert_allclose(u, one_leaf.subgradient(flat), rtol=1e-6)
    assert K.value({}) == 0 and K.subgradient([]) == []
