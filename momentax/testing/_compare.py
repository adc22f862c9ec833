"""Comparing trees, with the tolerances of the whole battery."""

import jax
import jax.numpy as jnp
import numpy as np

# Roundings that two ways of computing a few steps may differ by, in units of the dtype's eps and relative to
# the largest entry of the leaf: sums over some hundred entries in another order, fused multiply-adds.
ROUNDINGS = 256
# Half precision and float32 runs agree in direction, not in digits.
MIN_COSINE_IN_HALF = 0.98


def tolerance(dtype) -> float:
    """Largest relative difference that counts as rounding in `dtype`."""
    return ROUNDINGS * float(jnp.finfo(dtype).eps)


def leaves_with_names(tree):
    """Pairs of `a/b/c` and leaf."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in pairs]


def mirrors(state, params):
    """Triples of name, leaf of the state and parameter, for the leaves that mirror a parameter."""
    pairs = leaves_with_names(params)
    return [
        (name, leaf, param)
        for name, leaf in leaves_with_names(state)
        for path, param in pairs
        if f"/{name}".endswith(f"/{path}") and leaf.shape == param.shape
    ]


def host(leaf) -> np.ndarray:
    """The values as numpy, floating ones in double precision."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.astype(np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else array


def assert_same_structure(actual, expected, what):
    """Both trees have the same nodes."""
    actual, expected = jax.tree.structure(actual), jax.tree.structure(expected)
    assert actual == expected, f"{what}: the tree is {actual}, not {expected}"


def assert_close(actual, expected, what):
    """Both trees are equal up to rounding in the precision of the coarser one."""
    assert_same_structure(actual, expected, what)
    for (name, a), (_, b) in zip(leaves_with_names(actual), leaves_with_names(expected), strict=True):
        assert a.shape == b.shape, f"{what}: '{name}' has shape {a.shape}, not {b.shape}"
        if not jnp.issubdtype(b.dtype, jnp.inexact):
            assert np.array_equal(host(a), host(b)), f"{what}: '{name}' differs"
            continue
        coarse = max(float(jnp.finfo(a.dtype).eps), float(jnp.finfo(b.dtype).eps))
        x, y = host(a), host(b)
        assert np.array_equal(np.isfinite(x), np.isfinite(y)), f"{what}: '{name}' is not finite in the same places"
        x, y = np.nan_to_num(x, posinf=0, neginf=0), np.nan_to_num(y, posinf=0, neginf=0)
        off, allowed = np.max(np.abs(x - y), initial=0), ROUNDINGS * coarse * np.max(np.abs(y), initial=0)
        assert off <= allowed, f"{what}: '{name}' is off by {off:.2g}, more than the {allowed:.2g} of rounding"


def assert_identical(actual, expected, what):
    """Both trees are equal bit by bit, types included."""
    assert_same_structure(actual, expected, what)
    for (name, a), (_, b) in zip(leaves_with_names(actual), leaves_with_names(expected), strict=True):
        assert a.dtype == b.dtype, f"{what}: '{name}' has dtype {a.dtype}, not {b.dtype}"
        assert np.array_equal(host(a), host(b), equal_nan=a.dtype.kind == "f"), f"{what}: '{name}' differs"


def assert_finite(tree, what):
    """No NaN and no infinity."""
    for name, leaf in leaves_with_names(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert bool(jnp.all(jnp.isfinite(leaf))), f"{what}: '{name}' is not finite"


def types(tree):
    """Name, shape, dtype and weakness of each leaf; on explicit meshes the sharding too."""

    def kind(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return (leaf.shape, str(leaf.dtype), bool(getattr(leaf, "weak_type", False)))
        return (leaf.shape, str(leaf.dtype), bool(jax.typeof(leaf).weak_type))

    return {name: kind(leaf) for name, leaf in leaves_with_names(tree)}


def assert_same_types(actual, expected, what):
    """Leaves have the same shapes, dtypes and weak types."""
    assert_same_structure(actual, expected, what)
    before, after = types(expected), types(actual)
    changed = [f"'{name}' from {before[name]} to {after[name]}" for name in before if before[name] != after[name]]
    assert not changed, f"{what} (shape, dtype, weak type): {'; '.join(changed)}"
