"""Sparse momentum: how many entries move, which, that shards stay independent, and that it equals masked gradients."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import momentax
from momentax import routing
from momentax.sharding import divide

COLLECTIVE = re.compile(r"(?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)[\w-]*\(")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def kept(tx, params, steps):
    """Which entries move at each step, under gradients of ones; `tx` is sparse around the identity."""

    def step(state, _):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state)
        return state, jax.tree.map(lambda u: u != 0, updates)

    return jax.jit(lambda params: jax.lax.scan(step, tx.init(params), length=steps)[1])(params)


def normal(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


# How many


SHAPES = {1.0: [(), (90,)], 0.37: [(1, 97), (3, 5, 7), (2, 3, 4, 10)]}


@pytest.mark.parametrize("density", SHAPES)
def test_exactly_floor_of_d_n_entries_move_at_every_step(density):
    params = {str(shape): jnp.zeros(shape) for shape in SHAPES[density]}
    moved = kept(momentax.sparse_momentum(optax.identity(), density, refresh=2), params, steps=4)
    for name, leaf in params.items():
        counts = jnp.sum(moved[name], axis=tuple(range(1, leaf.ndim + 1)))
        assert counts.tolist() == [math.floor(density * leaf.size)] * 4, name


def test_the_state_is_smaller_than_a_dense_one():
    params = {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)}

    def bytes_of(tx):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(tx.init, params)))

    adam = momentax.scale_by_adam()
    assert bytes_of(momentax.sparse_momentum(adam, 0.25, refresh=10)) <= 0.40 * bytes_of(adam)


# Which


def test_choices_of_leaves_periods_and_keys_are_independent():
    size, density, periods, refresh = 512, 0.25, 300, 2
    params = {"a": jnp.zeros(size), "b": jnp.zeros(size)}
    masks = [
        kept(momentax.sparse_momentum(optax.identity(), density, refresh, key=key), params, refresh * periods)
        for key in (0, jax.random.key(1))
    ]
    first, second = ({name: np.asarray(mask) for name, mask in tree.items()} for tree in masks)
    for mask in first.values():  # steps count from 1, so the first period has one step less
        np.testing.assert_array_equal(mask[1:-1:2], mask[2::2])
    periodic = first["a"][1::2]
    n = len(periodic) - 1
    # the overlap of two independent choices of k out of n in each stratum is hypergeometric
    strata = divide((size,), density, shards=16)
    variance = strata.number * (strata.size * density * (1 - density)) ** 2 / (strata.size - 1)
    mean = size * density**2
    for other in (first["b"][3::2], second["a"][3::2], periodic[1:]):
        overlaps = np.sum(periodic[:n] & other[:n], axis=1)
        assert abs(np.mean(overlaps) - mean) < 5 * math.sqrt(variance / n)
        assert 0.7 < np.var(overlaps) / variance < 1.3


def test_the_choice_does_not_depend_on_the_precision():
    init = momentax.sparse_momentum(optax.identity(), 0.25).init
    wide = jax.jit(init)(jnp.zeros((16, 8))).indices
    with jax.enable_x64(False):
        np.testing.assert_array_equal(jax.jit(init)(jnp.zeros((16, 8))).indices, wide)


# Meshes


SPECS = {
    "replicated": PartitionSpec(),
    "first axis": PartitionSpec(("x", "y")),
    "second axis": PartitionSpec(None, ("x", "y")),
    "both": PartitionSpec("x", "y"),
}
SHARDED = momentax.sparse_momentum(momentax.heavy_ball(0.9), 0.3, refresh=2)


@functools.cache
def on_one_device(shape):
    """The state of `init`, and two updates, the second one after a refresh."""
    w, update = normal(shape), jax.jit(SHARDED.update)
    start = jax.jit(SHARDED.init)(w)
    first, state = update(w, start)
    return start, [first, update(w, state)[0]]


def on_a_mesh(shape, spec, kind):
    """The mesh, the weight placed there, and the state of `init` with its arrays lying as the weight does."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType[kind],) * 2)
    state = on_one_device(shape)[0]
    arrays = (normal(shape), state)
    lie = jax.tree.map(lambda x: NamedSharding(mesh, SPECS[spec] if x.ndim else PartitionSpec()), arrays)
    return mesh, *jax.device_put(arrays, lie)


PLACEMENTS = [((512, 8), spec, kind) for spec in SPECS for kind in ("Auto", "Explicit")]


@pytest.mark.parametrize(("shape", "spec", "kind"), [*PLACEMENTS[1:], ((640, 8), "both", "Auto")], ids=str)
def test_on_a_mesh_the_same_entries_move_without_any_collective(shape, spec, kind):
    """Strata of 32 entries, and of 20."""
    mesh, w, state = on_a_mesh(shape, spec, kind)
    with jax.set_mesh(mesh):
        compiled = jax.jit(SHARDED.update).lower(w, state).compile()
        for expected in on_one_device(shape)[1]:
            actual, state = compiled(w, state)
            np.testing.assert_array_equal(actual, expected)
            assert actual.sharding.is_equivalent_to(w.sharding, 2)
        assert not COLLECTIVE.findall(compiled.as_text())


def test_where_shards_cut_strata_the_same_entries_move_nevertheless():
    mesh, w, _ = on_a_mesh((24, 8), "first axis", "Explicit")
    with jax.set_mesh(mesh):
        state, update = jax.jit(SHARDED.init)(w), jax.jit(SHARDED.update)
        assert state.indices.sharding.is_fully_replicated
        for expected in on_one_device((24, 8))[1]:
            actual, state = update(w, state)
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_init_that_is_not_compiled_places_the_state_like_the_weight(kind):
    mesh, w, _ = on_a_mesh((512, 8), "both", kind)
    with jax.set_mesh(mesh):
        state = SHARDED.init(w)
    np.testing.assert_array_equal(state.indices, on_one_device((512, 8))[0].indices)
    for leaf in jax.tree.leaves(state):
        assert leaf.ndim == 0 or leaf.sharding.is_equivalent_to(w.sharding, 2)


# What they do


ADAMW = optax.chain(momentax.scale_by_adam(), momentax.decays.decoupled(0.5), optax.scale(-0.1))
INNER = {"heavy_ball": momentax.heavy_ball(0.9), "AdamW": ADAMW}
STEPS = 7


def weights():
    return {"dense": {"kernel": normal((16, 12)), "bias": normal((4,))}}


def masked_run(inner, masks, gs, params):
    """Updates of the dense `inner` under masked gradients, started again wherever a mask changes; masked, too."""
    update, updates = jax.jit(inner.update), []
    for t, (mask, g) in enumerate(zip(masks, gs, strict=True)):
        if not t or any(jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (mask, masks[t - 1])), strict=True)):
            state = inner.init(params)
        u, state = update(jax.tree.map(jnp.multiply, mask, g), state, params)
        updates.append(jax.tree.map(jnp.multiply, mask, u))
    return updates


def sparse_run(tx, gs, params):
    update, state, updates = jax.jit(tx.update), jax.jit(tx.init)(params), []
    for g in gs:
        u, state = update(g, state, params)
        updates.append(u)
    return updates


def unstack(tree):
    return [jax.tree.map(lambda leaf, t=t: leaf[t], tree) for t in range(STEPS)]


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), actual, expected)


@pytest.mark.parametrize("name", INNER)
def test_it_equals_the_inner_transformation_under_masked_gradients(name):
    """Around the third and sixth step everything starts again; the bias is dense, and an optimizer decays only what
    is kept."""
    params = weights()
    gs = [jax.tree.map(lambda w, t=t: normal(w.shape, t + 1), params) for t in range(STEPS)]
    options = dict(density=0.4, refresh=3, density_mask=routing.only_matrices, key=5)
    masks = unstack(kept(momentax.sparse_momentum(optax.identity(), **options), params, STEPS))
    assert all(mask["dense"]["bias"].all() and not mask["dense"]["kernel"].all() for mask in masks)
    actual = sparse_run(momentax.sparse_momentum(INNER[name], **options), gs, params)
    assert_close(actual, masked_run(INNER[name], masks, gs, params))


def test_replayed_masks_may_keep_any_number_of_entries_and_the_last_one_stays():
    params = weights()
    masks = np.random.default_rng(0).random((4, 16, 12)) < 0.3
    masks[0], masks[2] = True, False
    masks = masks[[0, 0, 1, 2, 3]]
    gs = [jax.tree.map(lambda w, t=t: normal(w.shape, t + 1), params) for t in range(STEPS)]
    tx = momentax.sparse_momentum(momentax.scale_by_adam(), masks={"dense/kernel": masks})
    full = [{"dense": {"kernel": masks[min(t, 4)], "bias": np.ones(4)}} for t in range(STEPS)]
    assert_close(sparse_run(tx, gs, params), masked_run(momentax.scale_by_adam(), full, gs, params))


def test_one_mask_is_a_fixed_choice():
    mask = np.eye(4, dtype=bool)
    tx = momentax.sparse_momentum(momentax.heavy_ball(0.5), masks={"w": mask[None]})
    updates = sparse_run(tx, [{"w": jnp.ones((4, 4))}] * 2, {"w": jnp.ones((4, 4))})
    np.testing.assert_allclose(updates[1]["w"], 1.5 * mask)


def test_without_restart_the_buffers_go_on():
    g = jnp.ones((8, 8))
    tx = momentax.sparse_momentum(momentax.heavy_ball(0.5), 0.25, refresh=2, restart=False)
    for t, u in enumerate(sparse_run(tx, [g] * 5, g), start=1):
        np.testing.assert_allclose(u[u != 0], np.full(16, 2 - 0.5 ** (t - 1)))


def test_a_refresh_does_not_move_weights_that_have_a_master():
    """The master weights belong to the entries that were kept before."""
    w = jnp.arange(1.0, 65.0, dtype=jnp.bfloat16)
    tx = momentax.sparse_momentum(momentax.keep_master_weights(optax.sgd(1e-3)), 0.5, refresh=2)
    for u in sparse_run(tx, [jnp.ones_like(w)] * 5, w):
        assert jnp.max(jnp.abs(u)) <= 0.01


def test_no_decay_on_vectors_knows_the_vectors_when_all_leaves_are_sparse():
    shapes = {
        "attention": {"query": {"kernel": (16, 4, 2), "bias": (4, 2)}},
        "dense": {"kernel": (16, 8), "bias": (8,)},
        "norm": {"scale": (8,)},
    }
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda node: isinstance(node, tuple))
    decay = momentax.decays.decoupled(0.5, routing.no_decay_on_vectors)
    tx = momentax.sparse_momentum(decay, 0.5)
    updates = jax.jit(lambda w: tx.update(jax.tree.map(jnp.zeros_like, w), tx.init(w), w)[0])(params)
    moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
    assert moved == routing.no_decay_on_vectors(params)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(density=0.05), r"keeps no entry of leaf 'w' of shape \(4, 4\).*density_mask="),
        (dict(density=0.0), r"`density` must lie in \(0, 1\]"),
        (dict(density=True), r"`density` must lie in \(0, 1\]"),
        (dict(density=np.ones(2)), r"`density` must lie in \(0, 1\]"),
        (dict(), "either `density`.*or `masks`"),
        (dict(density=0.5, masks={"w": np.ones((1, 4, 4), bool)}), "either `density`.*or `masks`"),
        (dict(masks={"v": np.ones((2, 4, 4), bool)}), r"`masks` names 'v'; the leaves are \['w'\]"),
        (dict(masks={"w": np.ones((4, 4), bool)}), r"the masks of leaf 'w' must be bools of shape \(steps"),
        (dict(masks={"w": np.ones((2, 4, 4))}), r"the masks of leaf 'w' must be bools of shape \(steps"),
        (dict(masks={"w": np.ones((1, 4, 4), bool)}, refresh=2), "leave out the other arguments"),
        (dict(density=0.5, shards=0), "`shards` must be"),
        (dict(density=0.5, key=0.5), "`key`"),
        (dict(density=0.5, key=np.zeros(2, np.uint32)), "`key`"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=f"sparse_momentum.*{message}"):
        momentax.sparse_momentum(momentax.heavy_ball(), **arguments).init({"w": jnp.ones((4, 4))})


def test_leaves_of_another_shape_are_refused():
    tx = momentax.sparse_momentum(momentax.heavy_ball(), 0.5)
    state = jax.eval_shape(tx.init, {"w": jnp.ones((4, 4))})
    with pytest.raises(ValueError, match=r"sparse_momentum: leaf 'w' \(8, 8\) does not match the state"):
        jax.eval_shape(tx.update, {"w": jnp.ones((8, 8))}, state)


def test_arrays_of_numpy_are_leaves_too():
    params = {"w": np.ones((4, 4))}
    tx = momentax.sparse_momentum(momentax.heavy_ball(), 1.0)
    assert_close(jax.jit(tx.update)(params, tx.init(params))[0], params)


def test_a_leaf_that_no_small_strata_divide_is_refused():
    with pytest.raises(ValueError, match=r"sparse_momentum: leaf 'w' of shape \(1006, 1006\) cannot be divided"):
        jax.eval_shape(momentax.sparse_momentum(momentax.heavy_ball(), 0.25).init, {"w": jnp.zeros((1006, 1006))})
