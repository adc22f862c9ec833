"""Where the state of an optimizer belongs: what mirrors a parameter lies as that parameter, the rest is replicated."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from momentax.sharding._places import fitting
from momentax.sharding._specs import resolve_specs
from momentax.slots import mirrored
from momentax.typing import Params, Transformation


def state_shardings(
    tx: Transformation, params: Params, mesh: Any = None, param_specs: Any = None, memory_kind: str | None = None
) -> Any:
    """A NamedSharding for every leaf of `tx.init(params)`.

    `jax.jit(tx.init, out_shardings=state_shardings(tx, params))(params)` makes the state where it belongs; on meshes
    whose axes the compiler manages nothing else does, and moments would come out replicated. The tree is also the
    target of `jax.device_put` and of restored checkpoints.

    A leaf that mirrors a parameter (`momentax.slots.mirrored`) has the partition of it; one that is shorter along an
    axis is whole along it where the devices do not divide it. Counts, vectors of one number for each leaf, factors and
    keys are replicated. On meshes whose axes are explicit the types that `init` gives are taken as they are, and leaves
    that `init` puts into host memory, as `momentax.offload_state` does, stay there.

    Args:
      tx: transformation; its `init` is traced, nothing is computed.
      params: arrays or jax.ShapeDtypeStruct that have a NamedSharding, or any with `mesh` and `param_specs`.
      mesh: mesh of the partitions; None: that of the NamedShardings, else the one of `jax.set_mesh`.
      param_specs: tree of PartitionSpec or NamedSharding like the parameters or a prefix of them, or a function
        (path, leaf) of one, with paths such as "block/dense/kernel". None: the shardings of `params`.
      memory_kind: memory of the leaves that mirror a parameter, for example "pinned_host" for a state that is put aside
        with `jax.device_put`; the small rest stays. None: the memory in which `init` leaves them.

    Raises:
      ValueError: partitions and parameters do not fit, or the devices have no such memory.

    Example:
      >>> import jax, jax.numpy as jnp, momentax
      >>> tx, params = momentax.scale_by_adam(), {"kernel": jnp.zeros((8, 4))}
      >>> mesh = jax.make_mesh((1,), ("fsdp",))
      >>> lies = momentax.sharding.state_shardings(tx, params, mesh, {"kernel": jax.P(None, "fsdp")})
      >>> lies.mu["kernel"].spec, lies.count.spec
      (P(None, 'fsdp'), P())
      >>> jax.jit(tx.init, out_shardings=lies)(params).mu["kernel"].sharding == lies.mu["kernel"]
      True
    """
    mesh, specs = resolve_specs("state_shardings", params, mesh, param_specs)
    if mesh is None:
        raise ValueError(
            "state_shardings: nobody knows the mesh: give `mesh`, or parameters that have a NamedSharding."
        )
    if memory_kind is not None and isinstance(mesh, Mesh):
        check_memory("state_shardings", mesh.devices.flat[0], memory_kind)
    flat, treedef = jax.tree.flatten(params)
    placed = [
        jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=NamedSharding(mesh, spec))
        for leaf, spec in zip(flat, specs, strict=True)
    ]
    typed = all(kind == AxisType.Explicit for kind in mesh.axis_types)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program, state = jax.make_jaxpr(tx.init, return_shape=True)(jax.tree.unflatten(treedef, placed))
    result = []
    for at, aval in zip(mirrored(state, params), program.out_avals, strict=True):
        spec = PartitionSpec() if at is None else fitting(specs[at], aval.shape, mesh.shape)
        if typed and not aval.sharding.mesh.empty:
            spec = aval.sharding.spec
        kind = "pinned_host" if aval.memory_space == jax.memory.Space.Host else None
        result.append(NamedSharding(mesh, spec, memory_kind=kind if at is None else memory_kind or kind))
    return jax.tree.unflatten(jax.tree.structure(state), result)


def check_memory(function: str, device: Any, memory_kind: str) -> None:
    """Raises `ValueError` unless devices of this kind have the memory."""
    kinds = [memory.kind for memory in device.addressable_memories()]
    if memory_kind not in kinds:
        raise ValueError(
            f"{function}: devices of platform '{device.platform}' have no memory {memory_kind!r}; they have "
            f"{', '.join(map(repr, kinds))}. Keep the state in one of these."
        )
