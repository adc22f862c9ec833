"""Orthogonalisation of blocks: which blocks, when, and what they cost on a mesh."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import momentax
from momentax import linalg
from momentax.routing import matrix

ROUTING = {
    "conv": matrix((0, 1, 2), (3,)),
    "heads": matrix((0,), (1, 2)),
    "qkv": matrix((0,), (1,), blocks=3),
    "stack*": matrix((1,), (2,), (0,)),
    "turned": matrix((1,), (0,)),
    "*": matrix((0,), (1,)),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def replaced(tree, *args, **kwargs):
    tx = momentax.orthogonalize_blocks(*args, routing=ROUTING, **kwargs)
    return jax.jit(lambda tree: tx.update(tree, tx.init(tree))[0])(tree)


def expected(x):
    """One block (in, out) by itself."""
    return 0.2 * math.sqrt(max(x.shape)) * linalg.newton_schulz(x, 5, "muon", eps=1e-7)


def in_grid(x, rows, columns):
    return jnp.block([[expected(b) for b in jnp.split(row, columns, 1)] for row in jnp.split(x, rows, 0)])


def test_with_period_1_it_is_orthogonalize():
    tree = {"conv": normal(3, 3, 2, 4), "qkv": normal(4, 12), "stack": normal(2, 4, 6), "w": normal(4, 6)}
    tx = optax.chain(
        momentax.orthogonalize(routing=ROUTING), momentax.scale_by_matrix_shape("moonlight", routing=ROUTING)
    )
    whole = jax.jit(lambda tree: tx.update(tree, tx.init(tree))[0])(tree)
    jax.tree.map(np.testing.assert_array_equal, replaced(tree, 1, blocks=(1, 2)), whole)


def test_each_block_is_orthogonalised_as_if_alone():
    tree = {
        "conv": normal(3, 3, 2, 4),
        "heads": normal(6, 4, 2),
        "qkv": normal(4, 12),
        "stack": normal(2, 4, 6),
        "turned": normal(6, 4),
        "w": normal(4, 6),
    }
    conv, heads, qkv, stack, turned, w = tree.values()
    numbers = {
        "conv": (1, 1, 2, 1),
        "heads": (2, 2, 1),
        "qkv": (1, 2),
        "stack": (2, 1, 2),
        "turned": (3, 1),
        "w": (1, 1),
    }
    actual = replaced(tree, None, blocks=lambda path, leaf: numbers[path])
    one, other = conv[:, :, :1].reshape(9, 4), conv[:, :, 1:].reshape(9, 4)
    by_hand = {
        "conv": jnp.concatenate([expected(part).reshape(3, 3, 1, 4) for part in (one, other)], axis=2),
        "heads": in_grid(heads.reshape(6, 8), 2, 2).reshape(6, 4, 2),
        "qkv": in_grid(qkv, 1, 6),  # the cut through the key, and its like through the others
        "stack": jnp.stack([in_grid(x, 1, 2) for x in stack]),
        "turned": in_grid(turned.T, 1, 3).T,
        "w": expected(w),
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), actual, by_hand)
    pair = {name: tree[name] for name in ("heads", "turned", "w")}
    by_hand |= {"turned": in_grid(turned.T, 2, 2).T, "w": in_grid(w, 2, 2)}
    for name, new in replaced(pair, None, blocks=(2, 2)).items():
        np.testing.assert_allclose(new, by_hand[name], rtol=0, atol=1e-12)


def test_whole_matrices_come_at_0_and_every_period_later():
    w = {"w": normal(4, 6)}
    tx = momentax.orthogonalize_blocks(3, blocks=(2, 1), routing=ROUTING)
    state, update = tx.init(w), jax.jit(tx.update)
    for count in range(7):
        new, state = update(w, state)
        by_hand = in_grid(w["w"], 1 if count % 3 == 0 else 2, 1)
        np.testing.assert_allclose(new["w"], by_hand, rtol=0, atol=1e-12, err_msg=f"count {count}")
    assert state.count == 7


def test_where_nothing_is_cut_no_branch_is_compiled():
    w = {"w": normal(4, 6)}
    for blocks, branches in ((None, False), ((1, 1), False), ((1, 2), True)):
        tx = momentax.orthogonalize_blocks(blocks=blocks, routing=ROUTING)
        assert ("cond" in str(jax.make_jaxpr(tx.update)(w, tx.init(w)))) == branches


def test_blocks_in_a_column_may_add_up_to_the_root_of_their_number():
    """(3) is attained by blocks that are alike, and binds random ones; root mean squares do not grow."""
    alike = jnp.concatenate([normal(4, 6)] * 3)
    tree = {"alike": alike, "random": normal(12, 6)}
    new = replaced(tree, None, "exact", blocks=(3, 1), scale="none")
    norms = {name: np.linalg.norm(x, 2) for name, x in new.items()}
    assert norms["alike"] == pytest.approx(math.sqrt(3), rel=1e-12)
    assert 1 < norms["random"] < math.sqrt(3)
    for period in (1, None):
        scaled = replaced({"random": tree["random"]}, period, "exact", blocks=(3, 1))
        assert math.sqrt(jnp.mean(scaled["random"] ** 2)) == pytest.approx(0.2, rel=1e-12)


SIZES = {"x": 2, "y": 4}
# name: shape and partition
LEAVES = {
    "rows": ((16, 8), PartitionSpec(("x", "y"), None)),
    "both": ((8, 16), PartitionSpec("x", "y")),
    "joint": ((16, 8), PartitionSpec(None, ("x", "y"))),
    "turned": ((8, 16), PartitionSpec("y", "x")),
    "heads": ((8, 4, 6), PartitionSpec("x", "y", None)),
    "qkv": ((8, 24), PartitionSpec("x", "y")),
    "stack": ((8, 6, 8), PartitionSpec(("y", "x"), None, None)),
    "stack_of_rows": ((4, 8, 6), PartitionSpec("x", "y", None)),
    "finer": ((8, 16), PartitionSpec("x", "y")),
    "coarser": ((16, 8), PartitionSpec(("x", "y"), None)),
}
STATED = {"finer": (4, 8), "coarser": (2, 1)}


def cut_as_by_devices(path, leaf):
    names = [(entry,) if isinstance(entry, str) else entry or () for entry in LEAVES[path][1]]
    return STATED.get(path) or [math.prod(SIZES[name] for name in entry) for entry in names]


def two_steps(tx):
    def run(updates):
        first, state = tx.update(updates, momentax.orthogonalize_blocks().init({}))
        return first, tx.update(updates, state)[0]

    return run


def on_mesh(mode, names, period):
    """Two steps, compiled for eight devices, and the operand."""
    kind = AxisType.Explicit if mode == "explicit" else AxisType.Auto
    mesh = jax.make_mesh(tuple(SIZES.values()), tuple(SIZES), axis_types=(kind,) * 2)
    specs = {name: LEAVES[name][1] for name in names}
    lies = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    tx = momentax.orthogonalize_blocks(period, blocks=lambda path, leaf: STATED.get(path), routing=ROUTING)
    run = two_steps(tx if mode == "explicit" else momentax.on_mesh(tx, mesh, specs))
    given = jax.device_put({name: normal(*LEAVES[name][0]) for name in names}, lies)
    if mode == "shard_map":
        run = jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=(specs, specs))
    with jax.set_mesh(mesh):
        run = jax.jit(run, out_shardings=(lies, lies) if mode == "auto" else None)
        return run.lower(given).compile(), given


@pytest.mark.parametrize("mode", ["auto", "explicit", "shard_map"])
def test_shards_are_the_blocks_that_one_device_is_told(mode):
    tx = momentax.orthogonalize_blocks(2, blocks=cut_as_by_devices, routing=ROUTING)
    alone = jax.jit(two_steps(tx))({name: normal(*shape) for name, (shape, _) in LEAVES.items()})
    compiled, given = on_mesh(mode, LEAVES, 2)
    for by_devices, by_one in zip(compiled(given), alone, strict=True):
        for name, new in by_devices.items():
            np.testing.assert_allclose(new, by_one[name], rtol=0, atol=1e-12, err_msg=name)
            assert new.sharding.is_equivalent_to(given[name].sharding, new.ndim)


@pytest.mark.parametrize("mode", ["auto", "explicit", "shard_map"])
def test_blocks_that_lie_whole_need_no_communication(mode):
    compiled, _ = on_mesh(mode, [name for name in LEAVES if name != "coarser"], None)
    assert "dot(" in compiled.as_text()
    assert not re.findall(r"all-to-all|all-gather|all-reduce|collective-permute", compiled.as_text())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(period=0), "`period` must be a number of steps"),
        (dict(scale="kj_last_axes"), "`scale` must be one of"),
        (dict(method="jordan"), "no table"),
        (dict(blocks=2), r"a pair \(rows, columns\).*got 2"),
        (dict(blocks=(2, 0)), "integers of 1 or more"),
        (dict(blocks=(1, 4)), r"'w' \(4, 6\) cannot be cut into 4 .* axis 1, of length 6: give `blocks`"),
        (dict(blocks=lambda path, leaf: (1, 2, 1)), "one number for each axis of leaf 'w'"),
    ],
)
def test_what_cannot_be_cut_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        momentax.orthogonalize_blocks(**options, routing=ROUTING).init({"w": normal(4, 6)})
