"""Over which axes of a `jax.shard_map` types show arrays to vary; none where types are not checked, and outside."""

from collections.abc import Collection, Sequence

import jax


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The axes along which types show an array to vary."""
    return jax.typeof(x).manual_axis_type.varying


def vary_over(x: jax.Array, axes: Collection[str]) -> jax.Array:
    """x, typed as varying along these axes, too: branches and loops ask for one type."""
    missing = frozenset(axes) - varying_axes(x)
    return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x


def vary_alike(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The arrays, typed as varying along the axes along which any of them varies."""
    axes = frozenset().union(*map(varying_axes, arrays))
    return [vary_over(x, axes) for x in arrays]


def vary_as(x: jax.Array, *others: jax.Array) -> jax.Array:
    """x, typed as varying along the axes along which the others vary."""
    return vary_over(x, frozenset().union(*map(varying_axes, others)))


def checked(names: Collection[str]) -> bool:
    """Whether types tell where arrays vary along these axes."""
    return bool(varying_axes(jax.lax.axis_index(tuple(names))))


def gather(x: jax.Array, names: Collection[str], axis: int = 0, *, tiled: bool = True) -> jax.Array:
    """What all devices along these axes hold, typed as the same on each of them.

    Unchecked types are left alone: there JAX would take the gradient of one device for that of all.
    """
    to = "invarying" if checked(names) else "varying"
    return jax.lax.all_gather(x, tuple(names), axis=axis, tiled=tiled, to=to)
