"""Keep what an optimizer remembers in the memory of the host between steps.

    u, s   = inner(g, device(S_{t-1}))    (1)
    S_t    = host(s)                      (2)

S: slots of the state of `inner`, the leaves that mirror a parameter; all else stays on the device. Adam's two float32
slots take 8 bytes a parameter off the accelerator, and cross the bus between it and the host twice a step: worth it
where memory is what is short and a step takes longer than that. Types say in which memory an array is, so that jit,
donation and `momentax.sharding.state_shardings` need not be told. `jax.pmap` takes no arrays from host memory.

Contract: wrapper, around a direction or a complete optimizer.
Source: Ren, Rajbhandari, Aminabadi, Ruwase, Yang, Zhang, Li & He, ZeRO-Offload, USENIX ATC 2021, arXiv 2101.06840.
Departure: there the host also computes the update; here it only stores.
"""

import jax
import optax

from momentax import checks, leaves
from momentax.sharding import check_memory
from momentax.slots import chosen
from momentax.typing import Transformation


def offload_state(inner: Transformation, slots: tuple[str, ...] | None = None) -> optax.GradientTransformationExtraArgs:
    """Stores the slots of `inner` in pinned host memory.

    Put it around `momentax.round_state` and not inside, so that half the bytes travel.

    Args:
      inner: any transformation or optimizer.
      slots: names of the state fields to store there, for example ("nu",); None: all that mirror the parameters.

    Returns:
      A transformation with the state of `inner`.

    Raises:
      ValueError: devices have no pinned host memory (TPUs and GPUs have it, and in today's JAX CPUs say so), or a name
        in `slots` that no slot has.
      TypeError: `inner` is no transformation, `slots` no tuple, or a leaf is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, momentax
      >>> tx = momentax.offload_state(momentax.scale_by_adam())
      >>> params = {"kernel": jnp.ones((4, 2))}
      >>> updates, state = jax.jit(tx.update)(params, tx.init(params))
      >>> state.nu["kernel"].sharding.memory_kind, updates["kernel"].sharding.memory_kind
      ('pinned_host', 'device')
    """
    checks.check_transformation("offload_state", "inner", inner)
    inner = optax.with_extra_args_support(inner)

    def move(state, like, space):
        flat, treedef = jax.tree.flatten(state)
        moved = [
            jax.device_put(x, space) if slot else x
            for slot, x in zip(chosen("offload_state", state, like, slots), flat, strict=True)
        ]
        return jax.tree.unflatten(treedef, moved)

    def init(params):
        leaves.check_leaves("offload_state", params, real=False)
        check_memory("offload_state", jax.local_devices()[0], "pinned_host")
        return move(inner.init(params), params, jax.memory.Space.Host)

    def update(updates, state, params=None, **extra_args):
        like = updates if params is None else params
        state = move(state, like, jax.memory.Space.Device)
        updates, state = inner.update(updates, state, params, **extra_args)  # (1)
        return updates, move(state, like, jax.memory.Space.Host)  # (2)

    return optax.GradientTransformationExtraArgs(init, update)
