"""Stacks, rows and matrices that a routing rule states, on one device and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convex.functions import STACKED, name
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from momentax import convex, routing

K_STACKED = [*STACKED, convex.nuclear(steps=6)]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def points(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("K", K_STACKED, ids=name)
@pytest.mark.parametrize(
    ("stacked", "each", "axis"),
    [
        (routing.matrix((2,), (-1, 0), (1,)), routing.matrix((1,), (2, 0)), 1),
        (routing.vector(batch_axes=(-1,)), routing.vector(), 3),
    ],
    ids=["matrices", "vectors"],
)
def test_a_stack_is_a_loop_over_its_matrices(K, stacked, each, axis):
    """Values add, the gauge is the largest, subgradients stand side by side: equal entries included."""
    x = jnp.round(points((5, 3, 4, 2)), 1)
    one, whole = K.on(each), K.on(stacked)
    slices = [jnp.take(x, i, axis) for i in range(x.shape[axis])]
    np.testing.assert_allclose(whole.value(x), sum(map(one.value, slices)), rtol=1e-13)
    np.testing.assert_allclose(whole.gauge(x), max(map(one.gauge, slices)), rtol=1e-13)
    np.testing.assert_allclose(whole.subgradient(x), jnp.stack([*map(one.subgradient, slices)], axis), atol=1e-13)
    if "steps" in K.name:
        return  # no exact subgradient, no Fenchel-Young
    y = whole.subgradient(x)
    np.testing.assert_allclose(whole.value(x) + whole.conjugate(y), jnp.sum(x * y), rtol=1e-13)
    one_outside = jnp.moveaxis(jnp.moveaxis(y, axis, 0).at[1].multiply(1.01), 0, axis)
    assert jnp.isinf(whole.conjugate(one_outside))


def test_two_axes_of_stacks_are_one():
    x = points((2, 3, 4, 5))
    rule = routing.matrix((2,), (3,), (0, 1))
    for K in K_STACKED:
        folded = K.on(routing.matrix((1,), (2,), (0,))).subgradient(x.reshape(6, 4, 5))
        np.testing.assert_allclose(K.on(rule).subgradient(x), folded.reshape(x.shape), atol=1e-13)


def test_rows_are_outputs_tokens_and_whole_vectors():
    x = points((4, 3, 5))
    lengths = {
        routing.matrix((0, 1), (2,)): (0, 1),
        routing.matrix((2,), (0, 1)): (2,),
        routing.matrix((1,), (2,), (0,)): (1,),
        routing.vector(): (0, 1, 2),
        routing.vector(batch_axes=(0,)): (1, 2),
        routing.embedding(1, 2, batch_axes=(0,)): (2,),
    }
    for rule, axes in lengths.items():
        norms = jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True))
        K = convex.row_norm().on(rule)
        np.testing.assert_allclose(K.subgradient(x), x / norms, rtol=1e-14)
        np.testing.assert_allclose([K.value(x), K.gauge(x)], [jnp.sum(norms), jnp.max(norms)], rtol=1e-14)


def test_axes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 3, 5\).*name every axis once"):
        convex.row_norm().on(routing.matrix((0,), (1,))).value(points((4, 3, 5)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize("axis", range(3))
def test_sharded_leaves_give_what_whole_ones_give(kind, axis):
    """Compiled and not, sharded along the stack, the inputs or the outputs; the result lies where the leaf lies."""
    x = jnp.round(points((8, 8, 16)), 1)
    functions = [K.on(routing.matrix((1,), (2,), (0,))) for K in K_STACKED] + [*K_STACKED, convex.l2(scope="global")]

    def everything(x):
        return [(K.value(x), K.gauge(x), K.subgradient(x)) for K in functions]

    expected = jax.jit(everything)(x)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    spec = PartitionSpec(*("d" if i == axis else None for i in range(3)))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        actual = jax.jit(everything)(placed)
        for one in actual:
            assert kind == AxisType.Auto or jax.typeof(one[2]) == jax.typeof(placed)
        if kind == AxisType.Explicit and axis == 1:
            assert jax.typeof(K_STACKED[0].subgradient(placed)) == jax.typeof(placed)
    for K, one, other in zip(functions, actual, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-12, err_msg=K.name)
