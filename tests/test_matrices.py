"""Leaves read as stacks of matrices, wherever they lie, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from momentax.matrices import fans, matrices
from momentax.routing import matrix

QKV = matrix((0,), (2,), (1,), blocks=3)  # (in, stack, 3 x out)


def counting(*shape):
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)


def test_side_by_side_and_back():
    x = counting(4, 2, 6)
    read = matrices("test", {"w": x}, QKV)
    apart = read.apart({"w": x})["w"]
    assert apart.shape == (4, 2, 3, 2)
    [rule] = read.rules
    assert (rule.in_axes, rule.out_axes, rule.batch_axes, rule.blocks) == ((0,), (3,), (1, 2), 1)
    np.testing.assert_array_equal(apart[:, 1, 2], x[:, 1, 4:])
    np.testing.assert_array_equal(read.together({"w": apart})["w"], x)
    assert read.apart(None) is None


def test_blocks_before_other_axes():
    """Of a torch layout (3 x out, in) the output axis is the first."""
    x = counting(6, 4)
    read = matrices("test", {"w": x}, matrix((1,), (0,), blocks=3))
    np.testing.assert_array_equal(read.apart({"w": x})["w"], x.reshape(3, 2, 4))
    assert (read.rules[0].in_axes, read.rules[0].out_axes, read.rules[0].batch_axes) == ((2,), (1,), (0,))


def test_fans():
    assert fans((4, 2, 6), QKV) == (4, 2)
    assert fans((3, 3, 2, 8), matrix((0, 1, 2), (3,))) == (18, 8)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_blocks_on_a_sharded_axis(kind):
    mesh = jax.make_mesh((2,), ("a",), axis_types=(kind,), devices=jax.devices()[:2])
    x = counting(4, 2, 6)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, None, "a")))
    read = matrices("test", {"w": placed}, QKV)
    back = read.together(read.apart({"w": placed}))["w"]
    np.testing.assert_array_equal(back, x)
    if kind == AxisType.Explicit:
        assert back.sharding.is_equivalent_to(placed.sharding, 3)
