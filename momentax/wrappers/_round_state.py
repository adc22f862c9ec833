"""Keep what an optimizer remembers in bfloat16, rounded at random so that averages do not stall.

    u, s = inner(g, S_{t-1})              (1)  S handed over in float32
    S_t  = a or b, its neighbours in bfloat16, |a| <= |s| <= |b|
    P(S_t = b) = (s - a) / (b - a)        (2)  so that E S_t = s; a bfloat16 number stays what it is

s, S: slots of the state of `inner`, the floating leaves that mirror a parameter; all else stays as it is. An average
with decay 0.999 moves by a thousandth of its distance to its aim, and bfloat16 numbers lie 1/256 to 1/128 apart:
rounded to the nearest it stands still while the aim is less than three times what it is, and never sinks. Rounded as in
(2) it is right on average. The noise of entry i is a function of the key, the step, the name of the slot and i: the
same wherever the state lies, without communication. Inside `jax.shard_map` every shard draws the same.

Contract: wrapper, around a direction or a complete optimizer. Put `momentax.keep_master_weights` around it.
Source: Gupta, Agrawal, Gopalakrishnan & Narayanan, Deep Learning with Limited Numerical Precision, ICML 2015, arXiv
1502.02551, section 3.
Departure: the paper rounds weights and products to fixed point; here it is the state of the optimizer that is rounded.
Infinities and NaN stay. Finite numbers beyond the largest of bfloat16 may become infinite.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from momentax import checks, leaves
from momentax.paths import named_leaves
from momentax.sharding import entry_numbers, noise
from momentax.slots import chosen
from momentax.typing import Count, Transformation


class RoundStateState(NamedTuple):
    """State of `round_state`.

    Attributes:
      count: steps taken, int32 scalar.
      inner: state of the inner transformation, slots in bfloat16.
    """

    count: Count
    inner: optax.OptState


def round_state(
    inner: Transformation, slots: tuple[str, ...] | None = None, *, rounding: str = "stochastic", key: Any = 0
) -> optax.GradientTransformationExtraArgs:
    """Stores the slots of `inner` in bfloat16: half the memory of float32.

    Args:
      inner: any transformation or optimizer.
      slots: names of the state fields to round, for example ("nu",); None rounds all that mirror the parameters.
      rounding: "stochastic", (2), or "nearest", which needs no random numbers and is right for averages with decay 0.9.
      key: an integer or a jax.random key, of the noise.

    Raises:
      ValueError: an unknown rounding, or a name in `slots` that no slot has.
      TypeError: `inner` is no transformation, `slots` no tuple, `key` no key, or a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.round_state(momentax.scale_by_adam())
      >>> params = {"kernel": jnp.ones((4, 2))}
      >>> updates, state = tx.update(params, tx.init(params))
      >>> state.inner.nu["kernel"].dtype, updates["kernel"].dtype
      (dtype(bfloat16), dtype('float32'))
    """
    checks.check_transformation("round_state", "inner", inner)
    checks.check_choice("round_state", "rounding", rounding, ("stochastic", "nearest"))
    _check_key(key)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        leaves.check_leaves("round_state", params, real=False)
        state = inner.init(params)
        flat, treedef = jax.tree.flatten(state)
        stored = [
            x.astype(jnp.bfloat16) if slot and _wider(x) else x
            for slot, x in zip(chosen("round_state", state, params, slots), flat, strict=True)
        ]
        return RoundStateState(jnp.zeros([], jnp.int32), jax.tree.unflatten(treedef, stored))

    def update(updates, state, params=None, **extra_args):
        flat, treedef = jax.tree.flatten(state.inner)
        like = updates if params is None else params
        narrow = [
            slot and x.dtype == jnp.bfloat16
            for slot, x in zip(chosen("round_state", state.inner, like, slots), flat, strict=True)
        ]
        wide = [x.astype(jnp.float32) if slot else x for slot, x in zip(narrow, flat, strict=True)]
        updates, new = inner.update(updates, jax.tree.unflatten(treedef, wide), params, **extra_args)  # (1)
        named = named_leaves(new)
        if rounding == "stochastic":
            start = jax.random.key(key) if jnp.issubdtype(jnp.result_type(key), jnp.integer) else key
            words = jax.random.bits(jax.random.fold_in(start, state.count), (2,), jnp.uint32)

        def store(path, x):
            if rounding == "nearest":
                return x.astype(jnp.bfloat16)
            return _round(x.astype(jnp.float32), words ^ np.uint32(zlib.crc32(path.encode())))

        stored = [store(path, x) if slot else x for slot, (path, x) in zip(narrow, named, strict=True)]
        return updates, RoundStateState(leaves.next_count(state.count), jax.tree.unflatten(treedef, stored))

    return optax.GradientTransformationExtraArgs(init, update)


def _wider(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 2


def _check_key(key: Any) -> None:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    whole = isinstance(key, (int, np.integer, jax.Array)) and jnp.issubdtype(jnp.result_type(key), jnp.integer)
    if not (typed or whole) or jnp.shape(key) != ():
        raise TypeError(f"round_state: `key` must be an integer or a key made by jax.random.key; got {key!r}.")


def _round(x: jax.Array, words: jax.Array) -> jax.Array:
    """A bfloat16 neighbour of each entry; in integers, since compilers remove casts to bfloat16 and back."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    place = jax.typeof(x).sharding
    numbers = entry_numbers(x.shape, None if place.mesh.empty else place)
    low = noise(numbers, words) >> np.uint32(16)  # uniform below 2^16, the distance of two neighbours
    # (2): the carry is the probability. The cast is exact; 16-bit integers in its place cost a TPU another pass.
    near = jax.lax.bitcast_convert_type((bits + low) & np.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), near, x).astype(jnp.bfloat16)
