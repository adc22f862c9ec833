"""Mean of the updates over the replicas of `jax.shard_map` and `jax.pmap`.

    u = (1 / N) sum_{i=1}^{N} g_i     (1)  i runs over the devices along the axes in `axis_name`

g_i: gradient of device i, any shape.  u: the same on all of these devices.

A leaf that JAX's types show to be the same along an axis is left alone there: it has been reduced. So are, for types
that are checked (`jax.shard_map` unless check_vma=False), the gradients of parameters that enter as copies: `jax.grad`
adds them over the axis. Let the loss be `jax.lax.pmean` of the devices' losses, and that sum is the mean; where types
are not checked, in `jax.pmap` too, the same loss needs (1).

Contract: transform.
Source: Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, arXiv 1706.02677, section 3: gradients
of equal parts of a batch are averaged. As `jax.lax.pmean` computes it.
A non-finite gradient on one device makes the update non-finite on all.
"""

import jax
import optax

from momentax import leaves
from momentax.varying import checked, varying_axes

NAME = "average_replicas"


def average_replicas(axis_name: str | tuple[str, ...]) -> optax.GradientTransformationExtraArgs:
    """Averages updates over devices that hold copies of the parameters and saw different data.

    First link of a chain, for training steps inside `jax.shard_map` or `jax.pmap` that do not reduce gradients. It
    stands before `momentax.on_mesh` and before optimizers with `param_specs`, which take gradients that are reduced:

        optax.chain(momentax.average_replicas("data"), momentax.on_mesh(...))

    Under jit without `jax.shard_map` gradients are those of the whole batch: leave it out.

    Args:
      axis_name: axis of `jax.shard_map`, `jax.pmap` or `jax.vmap` along which there are copies, or a tuple of them;
        (), averaging over nothing, is the identity. Axes over which a parameter is sharded do not belong here.

    Returns:
      A transformation without state. bfloat16 and float16 leaves travel and are averaged in float32.

    Raises:
      NameError: at the update, when there is no axis of this name around it.
      TypeError: `axis_name` is neither a string nor a tuple of them, or a leaf is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, optax, momentax
      >>> tx = optax.chain(momentax.average_replicas("data"), momentax.heavy_ball())
      >>> def step(gradient):
      ...     return tx.update(gradient, tx.init(gradient))[0]
      >>> print(jax.vmap(step, axis_name="data")(jnp.array([[1.0, 2.0], [3.0, 4.0]])))
      [[2. 3.]
       [2. 3.]]
    """
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{NAME}: `axis_name` must be a string or a tuple of them, as 'data'; got {axis_name!r}.")
    names = tuple(dict.fromkeys(names))

    def init(params):
        leaves.check_leaves(NAME, params, real=False)
        return optax.EmptyState()

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        shown = set(filter(_checked, names))

        def leaf(g):
            axes = tuple(name for name in names if name not in shown or name in varying_axes(g))
            return jax.lax.pmean(g, axes) if axes else g  # (1)

        return leaves.lift(NAME, leaf, updates, real=False), state

    return optax.GradientTransformationExtraArgs(init, update)


def _checked(name: str) -> bool:
    """Whether types tell what varies along the axis."""
    try:
        return checked((name,))
    except NameError as error:
        raise NameError(
            f"{NAME}: no axis '{name}' is around the update. Call it inside jax.shard_map or jax.pmap with an axis of "
            "this name, or leave it out: outside of them gradients are those of the whole batch."
        ) from error
