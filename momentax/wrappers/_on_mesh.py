"""Where parameters lie, said once for everything inside an optimizer.

    U = inner(G)      (1)  where `inner` knows that leaf l of G lies as S_l

G: gradients; S_l: a partition of each leaf over the axes of a mesh. The numbers are those of `inner`; what changes is
which device computes what. Three kinds of mesh:

    axes of type Explicit: arrays show where they lie, and nothing need be said.
    axes of type Auto: under jit arrays show their mesh and not their partition: say both.
    inside jax.shard_map and jax.pmap: each device sees a shard and cannot tell of what: say the partitions.

Techniques that compute whole matrices deal them to the devices (`momentax.sharding.distribute`). Outside
`jax.shard_map` all others are right in any case; inside, sums over a leaf become sums over its devices.

Contract: wrapper, around a transformation or a complete optimizer.
Source: JAX's shard_map and its two kinds of mesh axes; no technique of its own.
"""

from typing import Any

import optax

from momentax import checks
from momentax.sharding import placed
from momentax.typing import Transformation

NAME = "on_mesh"


def on_mesh(
    inner: Transformation,
    mesh: Any = None,
    param_specs: Any = None,
    *,
    wire_dtype: Any = None,
    layout: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Tells all transformations inside where the parameters lie.

    Args:
      inner: transformation or optimizer.
      mesh: jax.sharding.Mesh on which the parameters lie. None: that of `jax.set_mesh`, of the NamedShardings in
        `param_specs`, or of the `jax.shard_map` around the update.
      param_specs: partitions: a tree of PartitionSpec or NamedSharding like the parameters or a prefix of them, or
        a function (path, leaf) of one. None on meshes of explicit axes, which show them.
      wire_dtype: dtype in which matrices travel between devices, such as jnp.bfloat16, which halves the bytes; it
        rounds what arrives and what comes back. None is the dtype in which they are computed.
      layout: "fully_sharded" for Auto meshes without `param_specs`: assume that each matrix is sharded over all
        devices, and ask the compiler to move them as if. Right for every placement; on replicated leaves it adds
        traffic. None leaves all to the compiler.

    Returns:
      A transformation with the state of `inner`.

    Raises:
      ValueError: partitions that fit neither the parameters nor the mesh, by the name of the leaf; inside
        `jax.shard_map`, where types are checked, gradients that were not reduced over all axes that hold copies.
      TypeError: `inner` is no transformation, or `wire_dtype` no floating dtype.

    Example:
      >>> import jax, jax.numpy as jnp, momentax
      >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> tx = momentax.on_mesh(momentax.muon(), mesh, {"dense": {"kernel": jax.P("fsdp", None)}})
      >>> params = {"dense": {"kernel": jnp.ones((2, 3))}}
      >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    """
    checks.check_transformation(NAME, "inner", inner)
    checks.check_dtype(NAME, wire_dtype=wire_dtype)
    checks.check_choice(NAME, "layout", layout, (None, "fully_sharded"))
    return optax.GradientTransformationExtraArgs(*placed(NAME, inner, mesh, param_specs, wire_dtype, layout))
