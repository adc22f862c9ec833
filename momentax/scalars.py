"""Scalars kept for each leaf, or for each matrix of a stack: how they are summed, averaged, packed into one vector.

In the form of the parameter tree such scalars crash sharded `nnx.Optimizer`s and take the partitions of the matrices
they belong to; in one vector they do not.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from momentax.leaves import float_dtype
from momentax.routing import Routing, resolve


def batch_axes(function: str, tree: Any, routing: Routing | None) -> list[tuple[int, ...]]:
    """For each leaf the axes along which independent matrices are stacked: none unless `routing` states them."""
    if routing is None:
        return [()] * len(jax.tree.leaves(tree))
    return [rule.batch_axes for rule in resolve(function, tree, routing)]


def shapes(tree: Any, stacks: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each leaf the shape of one scalar a matrix, as it multiplies the leaf."""
    return [
        tuple(size if axis in stack else 1 for axis, size in enumerate(jnp.shape(leaf))) if stack else ()
        for leaf, stack in zip(jax.tree.leaves(tree), stacks, strict=True)
    ]


def vector_size(shapes: Sequence[tuple[int, ...]]) -> int:
    """Entries of the packed vector; at least one, since optax.tree_map_params shows a tree without leaves."""
    return max(1, sum(map(math.prod, shapes)))


def sum_over(x: jax.Array, kept: tuple[int, ...] = ()) -> jax.Array:
    """The sum of all entries: a scalar, or with axes `kept` one for each of their entries, shaped to multiply x."""
    if not kept:
        return jnp.sum(x)
    return jnp.sum(x, axis=tuple(axis for axis in range(x.ndim) if axis not in kept), keepdims=True)


def max_over(x: jax.Array, kept: tuple[int, ...] = ()) -> jax.Array:
    """The largest entry, where `sum_over` gives the sum; at least zero."""
    if not kept:
        return jnp.max(x, initial=0)
    return jnp.max(x, axis=tuple(axis for axis in range(x.ndim) if axis not in kept), keepdims=True, initial=0)


def total(scalars: Sequence[jax.Array]) -> jax.Array:
    """The sum of one scalar a leaf, whatever their dtypes."""
    return sum((scalar.astype(float_dtype()) for scalar in scalars), jnp.zeros([], float_dtype()))


def pack(parts: Sequence[jax.Array]) -> jax.Array:
    """Small arrays, some for each leaf, as the one vector in which a state keeps them."""
    return jnp.concatenate([jnp.ravel(_replicate(part)) for part in parts])


def unpack(function: str, vector: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """The arrays that `pack` was given, by their shapes."""
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    if ends and ends[-1] != vector.size:
        raise ValueError(
            f"{function}: the state holds numbers for {vector.size} leaves (or matrices), and there are {ends[-1]}: "
            "the gradients must have the leaves that `init` was given."
        )
    return [vector[end - math.prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]


def _replicate(x: jax.Array) -> jax.Array:
    """The same array whole on every device, where a mesh with explicit axes would refuse to mix placements."""
    mesh = jax.typeof(x).sharding.mesh
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return x
    return jax.reshard(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def average(mean: jax.Array, value: Any, decay: Any) -> jax.Array:
    """One step of an exponential moving average of scalars kept in a state."""
    return (decay * mean + (1 - decay) * jnp.asarray(value, mean.dtype)).astype(mean.dtype)


def nonzero(weight: jax.Array) -> jax.Array:
    """A divisor that is never zero: a scheduled decay of exactly 1 leaves an average without any weight."""
    return jnp.where(weight == 0, jnp.ones_like(weight), weight)


def debiasing(debias: Any, count: Any, weight: jax.Array | None, decay: Any) -> tuple[jax.Array | None, Any]:
    """The new weight of an average, None where no account is kept, and the number that debiases it.

    Args:
      debias: True keeps account of the weight, whatever the schedule of the decay; False does not debias; a function of
        the count gives the age after which a source believes its average to be: the divisor is 1 - decay^age.
      count: steps taken before this one.
      weight: the weight before this step, where debias=True.
      decay: of the average, at this step.
    """
    if callable(debias):  # -expm1(age log(decay)): the formula itself cancels in float32
        age = jnp.asarray(debias(count), float_dtype())
        return None, -jnp.expm1(age * jnp.log1p(-jnp.asarray(1 - decay, float_dtype())))
    if not debias:
        return None, 1.0
    assert weight is not None
    weight = average(weight, 1.0, decay)
    return weight, nonzero(weight)
