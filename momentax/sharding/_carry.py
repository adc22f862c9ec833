"""Runs a function that knows no mesh on arrays of a mesh with explicit axes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Placement = Callable[[PartitionSpec], PartitionSpec]


def carry(function: Callable[..., Any], *arrays: jax.Array, places: Sequence[Placement]) -> Any:
    """`function(*arrays)`, where a mesh with explicit axes would refuse its sorts, gathers and splitting reshapes.

    There the compiler places what happens inside, which costs the collectives that it finds necessary: right for every
    placement, and free where the function treats shards independently. On other meshes this is a plain call.

    Args:
      function: arrays in, a tuple of arrays out.
      arrays: the first one says where it lies, on a mesh or not.
      places: for each result, its partition as a function of that of the first array.

    Example:
      >>> import jax.numpy as jnp
      >>> carry(lambda x: (jnp.sort(x),), jnp.array([2, 1]), places=[lambda spec: spec])[0].tolist()
      [1, 2]
    """
    shardings = [jax.typeof(array).sharding for array in arrays]
    if not any(AxisType.Explicit in sharding.mesh.axis_types for sharding in shardings):
        return function(*arrays)
    spec = PartitionSpec(*shardings[0].spec, *[None] * (arrays[0].ndim - len(shardings[0].spec)))
    out_sharding = tuple(NamedSharding(shardings[0].mesh, place(spec)) for place in places)
    return jax.sharding.auto_axes(function, out_sharding=out_sharding)(*arrays)
