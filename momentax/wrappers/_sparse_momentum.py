"""Keep momentum for a random part of each weight, in buffers of that size, and move that part alone.

    S: floor(d n) entries of a leaf of n, chosen anew before every step t with t mod R = 0          (1)
    u[S] = inner(g[S], w[S]),   u = 0 elsewhere                                                      (2)
    where S is chosen anew, `inner` starts again: `momentax.reset_momentum` around it                (3)

d: `density`; R: `refresh`; t: steps, counted from 1. One axis of each leaf is divided into strata of a few entries,
8 / d where that is a divisor, and each stratum gives the same number of entries, or one more. So choosing and moving
entries stays within the shards of a mesh unless these cut strata, and the choice does not depend on the mesh.
`inner` is shown the kept entries as a leaf that is shorter along that axis: (4096, 1024) at d = 1/4 is (1024, 1024),
with each column's entries in that column. It should work entry by entry or on whole leaves: what reads rows, or
compares the shapes of a kernel and its bias, may not. Its state has that size, beside int32 indices: for Adam 3 d words
an entry instead of 2, which saves memory below d = 2/3. Inside `jax.shard_map` every shard makes the same choice.

Contract: wrapper, around a direction or a complete optimizer.
Source: Huang et al., SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training, ICLR 2025, arXiv 2501.06842;
official code TianjinYellow/SPAM-Optimizer, for two-dimensional leaves.
Departure: the code draws every mask but the first entry by entry with probability d, so that the number of entries
varies and buffers cannot be compact; here it is exactly floor(d n), spread evenly over the strata.
In the code resets come at the same steps, with a warm-up and without restarting the debiasing: `momentax.spam`.
"""

import itertools
import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from momentax import checks, clocks, leaves
from momentax.paths import named_leaves
from momentax.sharding import MANY, Strata, divide
from momentax.typing import Count, Mask, Transformation
from momentax.wrappers._reset_momentum import reset_momentum

MOST_COMPARISONS = 2**26  # of a leaf whose shape allows no small strata


class SparseMomentumState(NamedTuple):
    """State of `sparse_momentum`.

    Attributes:
      count: steps taken, int32 scalar.
      indices: tree like the parameters: for sparse leaves the places of the kept entries in their strata, int32,
        shaped as `inner` sees the leaf, where a stratum's size stands for none; optax.MaskedNode elsewhere.
      inner: state of the inner transformation, for the kept entries.
    """

    count: Count
    indices: Any
    inner: optax.OptState


def sparse_momentum(
    inner: Transformation,
    density: float | None = None,
    refresh: int | None = None,
    *,
    density_mask: Mask | None = None,
    masks: Mapping[str, Any] | None = None,
    restart: bool = True,
    shards: int = 16,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Runs `inner` on floor(density * size) entries of each leaf; the others do not move until they are chosen.

    Args:
      inner: transformation that works entry by entry, for example `momentax.scale_by_adam()` or a whole optimizer.
      density: d, in (0, 1]; the paper's runs of 60M to 1B parameters sweep it, without a default.
      refresh: R, steps between choices; None keeps the first. 500 in SPAM, together with its resets.
      density_mask: which leaves are sparse: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.only_matrices`. None means all. The others are shown to `inner` as they are.
      masks: instead of `density`, masks to replay: from the path of each sparse leaf to bools of shape
        (steps, *shape); the last one stays. Buffers hold as many entries as the fullest column.
      restart: whether (3) is done; False where `inner` resets itself at these steps.
      shards: devices over which one axis of a leaf may lie without its strata being cut; with more, entries are moved
        between devices, and nothing else changes. The choice depends on this number.
      key: an integer or a jax.random key; the choice depends on it, on the step and on the leaf alone.

    Raises:
      ValueError: a density outside (0, 1] or one that leaves nothing of a leaf, or masks that do not match.
      TypeError: `inner` is no transformation, or a leaf is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, momentax
      >>> tx = momentax.sparse_momentum(momentax.scale_by_adam(), density=0.25, refresh=100)
      >>> params = jnp.ones((16, 8))
      >>> updates, state = tx.update(params, tx.init(params))
      >>> int((updates != 0).sum()), state.inner.inner.mu.size
      (32, 32)
    """
    checks.check_transformation("sparse_momentum", "inner", inner)
    checks.check_steps("sparse_momentum", refresh=refresh, shards=shards)
    if (density is None) == (masks is None):
        raise ValueError("sparse_momentum: give either `density`, in (0, 1], or `masks`.")
    if density is not None and (
        isinstance(density, bool) or not isinstance(density, (int, float, np.floating)) or not 0 < density <= 1
    ):
        raise ValueError(
            f"sparse_momentum: `density` must lie in (0, 1]; got {density!r}. It decides about shapes: under "
            "optax.inject_hyperparams name it in static_args=('density',)."
        )
    _check_key(key)
    if masks is not None and (refresh is not None or density_mask is not None):
        raise ValueError(
            "sparse_momentum: `masks` say which leaves are sparse and when: leave out the other arguments."
        )
    if restart and masks:
        inner = reset_momentum(inner, _changes(masks))
    elif restart and refresh is not None:
        inner = reset_momentum(inner, refresh)
    inner = optax.with_extra_args_support(inner)

    def plan(params):
        """For each leaf a `_Sparse`, or None where it is dense."""
        flat = [(path, jnp.shape(x)) for path, x in named_leaves(params)]
        if masks is not None:
            unknown = sorted(set(masks) - {path for path, _ in flat})
            if unknown and flat:  # optax.tree_map_params shows a tree without leaves
                raise ValueError(
                    f"sparse_momentum: `masks` names '{unknown[0]}'; the leaves are {[path for path, _ in flat]}."
                )
            return [_replayed(path, shape, masks[path]) if path in masks else None for path, shape in flat]
        if not flat:
            return []
        chosen = leaves.mask_leaves("sparse_momentum", density_mask, params)
        return [
            _divided(path, shape, density or 0.0, shards) if sparse else None
            for (path, shape), sparse in zip(flat, chosen, strict=True)
        ]

    def choose(sparse, flat, t):
        """The places that each leaf keeps at step t."""
        start = jax.random.key(key) if jnp.issubdtype(jnp.result_type(key), jnp.integer) else key
        start = start if refresh is None else jax.random.fold_in(start, t // refresh)

        def places(leaf, x):
            if leaf is None:
                return DENSE
            if leaf.table is not None:
                return jnp.asarray(leaf.table)[jnp.minimum(t, len(leaf.table)) - 1]
            return leaf.strata.draw(jax.random.fold_in(start, zlib.crc32(leaf.path.encode())), x)

        return [places(leaf, x) for leaf, x in zip(sparse, flat, strict=True)]

    def init(params):
        leaves.check_leaves("sparse_momentum", params, real=False)
        flat, treedef = jax.tree.flatten(params)
        sparse = plan(params)
        places = choose(sparse, flat, 1)
        state = inner.init(_compact(params, sparse, places))
        return SparseMomentumState(jnp.zeros([], jnp.int32), jax.tree.unflatten(treedef, places), state)

    def update(updates, state, params=None, **extra_args):
        leaves.check_leaves("sparse_momentum", updates, real=False)
        leaves.leaves_like("sparse_momentum", updates, params)
        t = state.count + 1
        flat, treedef = jax.tree.flatten(updates)
        sparse = plan(updates if params is None else params)
        places = stored = _stored(state.indices, sparse)
        if masks is not None:
            places = choose(sparse, flat, t)
        elif refresh is not None:
            places = jax.lax.cond(clocks.due(t, refresh), lambda: choose(sparse, flat, t), lambda: stored)  # (1)
        shown = _compact(updates, sparse, places)
        shown_params = None if params is None else _compact(params, sparse, places)
        steps, inner_state = inner.update(shown, state.inner, shown_params, **extra_args)  # (2), (3)
        full = [
            u if leaf is None else leaf.strata.scatter(u, at, x)
            for u, leaf, at, x in zip(jax.tree.leaves(steps), sparse, places, flat, strict=True)
        ]
        count, indices = leaves.next_count(state.count), jax.tree.unflatten(treedef, places)
        return jax.tree.unflatten(treedef, full), SparseMomentumState(count, indices, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


DENSE = optax.MaskedNode()


def _check_key(key: Any) -> None:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    whole = isinstance(key, (int, np.integer, jax.Array)) and jnp.issubdtype(jnp.result_type(key), jnp.integer)
    if not (typed or whole) or jnp.shape(key) != ():
        raise TypeError(f"sparse_momentum: `key` must be an integer or a key made by jax.random.key; got {key!r}.")


class _Sparse(NamedTuple):
    """What is fixed about a sparse leaf; `table`: the places of each step, where masks are replayed."""

    path: str
    strata: Strata
    table: np.ndarray | None = None


def _divided(path: str, shape: tuple[int, ...], density: float, shards: int) -> _Sparse | None:
    if not math.prod(shape):
        return None
    if math.floor(density * math.prod(shape)) == 0:
        raise ValueError(
            f"sparse_momentum: density {density} keeps no entry of leaf '{path}' of shape {shape}; raise it, or leave "
            "the leaf dense: False for it in `density_mask=`."
        )
    if not shape:
        return None  # all of a scalar
    strata = divide(shape, density, shards)
    if strata.capacity * math.prod(shape) > MOST_COMPARISONS and strata.capacity > MANY + 1:
        raise ValueError(
            f"sparse_momentum: leaf '{path}' of shape {shape} cannot be divided into strata: no axis has a divisor "
            f"between {math.ceil(1 / density)} and {int(MANY / density)}. Leave it dense by density_mask=."
        )
    return _Sparse(path, strata)


def _replayed(path: str, shape: tuple[int, ...], masks: Any) -> _Sparse:
    """Each column a stratum, and the places of the masked entries for each step."""
    masks = np.asarray(masks)
    if masks.dtype != bool or masks.ndim < 2 or masks.shape[1:] != shape or not len(masks):
        raise ValueError(
            f"sparse_momentum: the masks of leaf '{path}' must be bools of shape (steps, *{shape}), and the leaf no "
            f"scalar; got {masks.dtype} of shape {masks.shape}."
        )
    counts = masks.sum(axis=1, keepdims=True)
    capacity = max(1, int(counts.max()))
    places = np.argsort(~masks, axis=1, kind="stable")[:, :capacity]
    slots = np.arange(capacity).reshape(1, -1, *[1] * (masks.ndim - 2))
    table = np.where(slots < counts, places, shape[0]).astype(np.int32)
    return _Sparse(path, Strata(shape, 0, shape[0], capacity * math.prod(shape[1:])), table)


def _changes(masks: Mapping[str, Any]) -> Any:
    """The predicate of resets: whether any mask differs from that of the step before."""
    for path, mask in masks.items():
        if np.ndim(mask) < 2:
            raise ValueError(f"sparse_momentum: the masks of leaf '{path}' must be bools of shape (steps, *its shape).")
    steps = max(len(mask) for mask in masks.values())
    changes = np.zeros(steps + 1, bool)  # none after the last
    for mask in map(np.asarray, masks.values()):
        changes[1 : len(mask)] |= (mask[1:] != mask[:-1]).any(axis=tuple(range(1, mask.ndim)))
    return lambda count, updates, params: jnp.asarray(changes)[jnp.minimum(count, steps)]


def _stored(indices: Any, sparse: list[_Sparse | None]) -> list[Any]:
    """The places kept in a state, one for each leaf."""
    kept = jax.tree.leaves(indices)
    wanted = [leaf for leaf in sparse if leaf is not None]
    for leaf, old in itertools.zip_longest(wanted, kept):
        if leaf is None or old is None or old.shape != leaf.strata.chosen_shape:
            which = (
                "the updates lack a leaf of"
                if leaf is None
                else f"leaf '{leaf.path}' {leaf.strata.shape} does not match"
            )
            raise ValueError(f"sparse_momentum: {which} the state; init with the same leaves.")
    places = iter(kept)
    return [DENSE if leaf is None else next(places) for leaf in sparse]


def _compact(tree: Any, sparse: list[_Sparse | None], places: list[Any]) -> Any:
    """The tree as the inner transformation sees it."""
    flat, treedef = jax.tree.flatten(tree)
    kept = [x if leaf is None else leaf.strata.gather(x, at) for x, leaf, at in zip(flat, sparse, places, strict=True)]
    return jax.tree.unflatten(treedef, kept)
