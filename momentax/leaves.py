"""Maths is written for ONE leaf; this module lifts it to trees and says which leaf is wrong.

`lift` hands each leaf to a plain function in its compute dtype (the leaf's own, float32 for bfloat16 and
float16) and casts what comes back: updates to the dtype of the gradient, state to the dtype of its slot.
A leaf function therefore contains no cast, no tree and no path.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from momentax.paths import closest, is_part, named_leaves, paths_of
from momentax.typing import Mask, Params, ScalarOrSchedule, Updates


def value_at(value: ScalarOrSchedule | None, count: jax.Array) -> Any:
    """A coefficient at this step: schedules are called with the number of steps already taken.

    Python numbers stay Python numbers, so that constants stay constants in the compiled program. None, a technique
    that is switched off, stays None.
    """
    value = value(count) if callable(value) else value
    return value if value is None or isinstance(value, (int, float)) else jnp.asarray(value).astype(float_dtype())


def float_dtype() -> Any:
    """The dtype of scalars kept in states: float32, float64 under x64."""
    return jnp.zeros([]).dtype


def zeros_like(function: str, params: Params, dtype: Any = None, *, real: bool = True) -> Any:
    """A state slot: zeros shaped and sharded like `params`.

    dtype None means the leaf's own, and float32 for bfloat16 and float16 leaves: in half precision an
    average with decay 0.999 stalls, since its steps are smaller than the spacing of the numbers.
    """
    check_leaves(function, params, real=real)
    if dtype is not None:
        _check_slot_dtype(function, dtype, compute_dtype(*jax.tree.leaves(params)))
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype or compute_dtype(p)), params)


def _check_slot_dtype(function: str, dtype: Any, needed: Any) -> None:
    if isinstance(dtype, jax.Array):
        raise TypeError(
            f"{function}: `mu_dtype` and `nu_dtype` must be dtypes; got an array. optax.inject_hyperparams takes a "
            "dtype for a schedule: name it there in static_args=('mu_dtype', 'nu_dtype')."
        )
    if not jnp.issubdtype(dtype, jnp.inexact) or (
        jnp.issubdtype(needed, jnp.complexfloating) and not jnp.issubdtype(dtype, jnp.complexfloating)
    ):
        raise ValueError(
            f"{function}: `mu_dtype` and `nu_dtype` must hold what the leaves hold ({needed}); got {dtype}."
        )


def compute_dtype(*leaves: Any) -> Any:
    """The dtype in which a leaf function works: at least float32."""
    dtypes = [np.dtype(jnp.result_type(leaf)) for leaf in leaves]
    return functools.reduce(np.promote_types, dtypes, np.dtype(np.float32))  # JAX may be set to refuse promotion


def lift(
    function: str,
    leaf_fn: Callable[..., Any],
    updates: Updates,
    *,
    state: Sequence[Any] = (),
    reads: Sequence[Any] = (),
    coefficients: Sequence[Any] = (),
    per_leaf: Sequence[Sequence[Any]] = (),
    real: bool = True,
) -> Any:
    """Applies `leaf_fn(u, *state, *reads, *coefficients, *per_leaf)` to every leaf.

    Args:
      function: name of the public function, for errors.
      leaf_fn: returns the new update and, where there is state, the new state leaves: `(u, *state)`.
      updates: tree of arrays.
      state: trees like `updates`, rewritten by `leaf_fn`; None stays None.
      reads: trees like `updates`, only read (the parameters, say); None stays None.
      coefficients: scalars shared by all leaves, or trees of them.
      per_leaf: lists with one entry a leaf, in flattening order.
        Arrays in `coefficients` and `per_leaf` are cast too, other things handed on as they are.
      real: whether complex leaves are refused.

    Returns:
      The new updates, or `(updates, *state)` where there is state, each in the dtype it came in.
    """
    flat, treedef = jax.tree.flatten(updates)
    results = each(function, leaf_fn, updates, (*state, *reads), coefficients, per_leaf, real=real)
    results = results if state else [(result,) for result in results]
    columns = list(zip(*results, strict=True)) or [()] * (1 + len(state))
    new_updates = jax.tree.unflatten(treedef, map(_cast_back, columns[0], flat))
    new_state: list[Any] = []
    for tree, column in zip(state, columns[1:], strict=True):
        if tree is None:
            new_state.append(None)
            continue
        old_leaves, old_treedef = jax.tree.flatten(tree)
        new_state.append(jax.tree.unflatten(old_treedef, map(_cast_back, column, old_leaves)))
    return (new_updates, *new_state) if state else new_updates


def each(
    function: str,
    leaf_fn: Callable[..., Any],
    updates: Updates,
    others: Sequence[Any] = (),
    coefficients: Sequence[Any] = (),
    per_leaf: Sequence[Sequence[Any]] = (),
    *,
    real: bool = True,
) -> list[Any]:
    """The results of `leaf_fn` on every leaf, as a list: what `lift` does before it casts back."""
    check_leaves(function, updates, real=real)
    columns = [jax.tree.leaves(updates), *(leaves_like(function, updates, tree) for tree in others)]
    results = []
    for index, arrays in enumerate(zip(*columns, strict=True)):
        dtype = compute_dtype(*(array for array in arrays if array is not None))
        arguments = (*arrays, *coefficients, *(column[index] for column in per_leaf))
        results.append(leaf_fn(*jax.tree.map(functools.partial(_cast, dtype=dtype), arguments)))
    return results


def _cast(x: Any, dtype: Any) -> Any:
    return jnp.asarray(x, dtype) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact) else x


def _cast_back(new: Any, old: Any) -> jax.Array:
    return jnp.asarray(new, jnp.result_type(old))


def check_leaves(function: str, tree: Any, *, real: bool = True) -> None:
    """Raises `TypeError` naming the first leaf that is not floating (or not real where `real`)."""
    for path, leaf in named_leaves(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{function}: leaf '{path}' has dtype {dtype}; momentum needs floating-point leaves. "
                "Leave it out with optax.masked or optax.partition, or cast it."
            )
        if real and jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{function}: leaf '{path}' has dtype {dtype}; this method is defined for real leaves. "
                "Wrap the chain in optax.contrib.split_real_and_imaginary, or leave the leaf out with optax.masked."
            )


def require_params(function: str, params: Params | None) -> Params:
    """The parameters, or a `ValueError` that says how to pass them."""
    if params is None:
        raise ValueError(f"{function} needs the parameters: call `update(updates, state, params)`.")
    return params


def mask_leaves(function: str, mask: Mask | None, params: Params) -> list[bool]:
    """One bool a leaf of `params`, in flattening order: True where the mask lets the technique act.

    `mask` is None (everywhere), a tree of bools with the leaves of `params` or a prefix of it, or a function
    of `params` that returns one.
    """
    paths = paths_of(params)
    if mask is None:
        return [True] * len(paths)
    tree = not callable(mask) or all(isinstance(keep, (bool, np.bool_)) for keep in jax.tree.leaves(mask))
    mask = mask if tree else mask(params)  # a tree of bools may be callable: Equinox modules are
    flat = named_leaves(mask)
    for path, keep in flat:
        if not isinstance(keep, (bool, np.bool_)) or (not path and len(paths) > 1):
            raise TypeError(
                f"{function}: the mask must hold Python bools, like the parameters or a prefix of them; got {keep!r} "
                f"{f'at {path!r}' if path else 'alone'}. Under optax.inject_hyperparams name each mask "
                "in static_args, ('weight_decay_mask',) for one, or it is taken for a schedule."
            )
    given = {path: bool(keep) for path, keep in flat}
    if list(given) == paths:
        return list(given.values())
    if is_part(params):
        above = [closest(path, given) for path in paths]
        if None not in above:  # the mask was made for the whole tree, of which this is a part
            return [given[found] for found in above if found is not None]
    try:
        full = jax.tree.map(lambda keep, subtree: jax.tree.map(lambda _: bool(keep), subtree), mask, params)
    except ValueError as error:
        difference = _first_difference("the mask", mask, "the parameters", params)
        raise ValueError(
            f"{function}: the mask does not match the parameters: {difference}. "
            "Give a tree of bools like the parameters, a prefix of it, or a function of the parameters."
        ) from error
    return jax.tree.leaves(full)


def folding(
    shape: Sequence[int], groups: Sequence[Sequence[int]]
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """The function that merges the axes of each group into one, in this order, and the way back.

    >>> there, back = folding((2, 3, 4), [(1,), (2, 0)])
    >>> there(jnp.zeros((2, 3, 4))).shape, back(jnp.zeros((3, 8))).shape
    ((3, 8), (2, 3, 4))
    """
    order = [axis for group in groups for axis in group]
    merged = [math.prod(shape[axis] for axis in group) for group in groups]
    apart = [shape[axis] for axis in order]
    turned_back = sorted(range(len(order)), key=order.__getitem__)
    return lambda x: x.transpose(order).reshape(merged), lambda y: y.reshape(apart).transpose(turned_back)


def next_count(count: jax.Array) -> jax.Array:
    """`count + 1`, held at the largest integer instead of wrapping around."""
    return jnp.asarray(optax.safe_increment(count))


def leaves_like(function: str, updates: Updates, tree: Any) -> list[Any]:
    """The leaves of `tree`, checked to match `updates` leaf by leaf; None stands for a tree that is not there."""
    if tree is None:
        return [None] * len(jax.tree.leaves(updates))
    leaves = jax.tree.leaves(tree)
    structures: list[Any] = [jax.tree.structure(tree), jax.tree.structure(updates)]
    if structures[0] == structures[1] and all(
        jnp.shape(a) == jnp.shape(b) for a, b in zip(leaves, jax.tree.leaves(updates), strict=True)
    ):
        return leaves
    difference = _first_difference("the updates", updates, "the state or the parameters", tree)
    if difference:
        raise ValueError(
            f"{function}: the updates do not match the state or the parameters: {difference}. "
            "Pass gradients of the parameters that `init` saw, or call `init` again."
        )
    return leaves  # the same leaves in other containers: NNX shows Params to init and arrays to update


def mask_tree(function: str, mask: Mask | None, params: Params) -> Any:
    """`mask_leaves` as a tree like `params`."""
    return jax.tree.unflatten(jax.tree.structure(params), mask_leaves(function, mask, params))


def _first_difference(ours: str, left: Any, theirs: str, right: Any) -> str:
    """Says where two trees part, or an empty string where they hold the same paths and shapes in the same order."""
    a = {path: jnp.shape(leaf) for path, leaf in named_leaves(left)}
    b = {path: jnp.shape(leaf) for path, leaf in named_leaves(right)}
    for path in (*a, *b):
        if path not in b:
            return f"leaf '{path}' of {ours} is missing in {theirs}"
        if path not in a:
            return f"leaf '{path}' of {theirs} is missing in {ours}"
        if a[path] != b[path]:
            return f"leaf '{path}' has shape {a[path]} where {b[path]} is expected"
    for first, second in zip(a, b, strict=True):
        if first != second:
            return f"leaf '{first}' of {ours} stands where {theirs} have '{second}': use the same containers"
    return ""
