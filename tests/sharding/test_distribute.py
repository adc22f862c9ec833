"""Stacks of matrices computed in few batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from momentax.sharding import Plan, distribute, plan_batches


def stacks(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def square(x):
    return jnp.matmul(jnp.matmul(x, x.mT), x)


def test_one_call_for_each_shape_and_dtype_and_the_order_is_kept():
    given = [*stacks((1, 2, 3), (2, 4, 4), (3, 2, 3), (0, 2, 3)), jnp.ones((1, 2, 3), jnp.bfloat16)]
    calls = []

    def function(x):
        calls.append((x.shape, x.dtype))
        return 2 * x

    results = distribute(function, given)
    assert calls == [((4, 2, 3), jnp.float32), ((2, 4, 4), jnp.float32), ((1, 2, 3), jnp.bfloat16)]
    for result, stack in zip(results, given, strict=True):
        assert result.dtype == stack.dtype
        np.testing.assert_array_equal(result, 2 * stack)


def test_a_plan_may_say_otherwise():
    given = stacks((1, 2, 3), (1, 2, 3))
    assert plan_batches(given) == Plan(((0, 1),))
    calls = []
    distribute(lambda x: calls.append(x.shape) or x, given, Plan(((1,), (0,))))
    assert calls == [(1, 2, 3), (1, 2, 3)]
    assert distribute(square, []) == []


def test_transposed_matrices_may_share_a_batch():
    given = stacks((2, 2, 3), (1, 3, 2))
    calls = []
    results = distribute(lambda x: calls.append(x.shape) or square(x), given, plan_batches(given, transposes=True))
    assert calls == [(3, 2, 3)]
    for result, stack in zip(results, given, strict=True):
        np.testing.assert_allclose(result, square(stack), rtol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_results_lie_where_the_stacks_lie(kind):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(kind,) * 2)
    given = stacks((2, 4, 8), (4, 4, 8), (2, 8, 8))
    specs = [PartitionSpec("a", "b"), PartitionSpec(None, "a", "b"), PartitionSpec(None, None, ("a", "b"))]
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(given, specs, strict=True)]
    with jax.set_mesh(mesh):
        results = jax.jit(lambda *xs: distribute(square, xs))(*placed)
    for result, stack, spec in zip(results, given, specs, strict=True):
        np.testing.assert_allclose(result, square(stack), rtol=1e-5, atol=1e-5)
        if kind == AxisType.Explicit:
            assert result.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
