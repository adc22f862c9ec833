"""Every optimizer, on a mesh where leaves lie in every way at once, does as on one device."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import CASES
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import momentax

# name: shape and partition over a mesh x=2, y=4
LEAVES = {
    "rows/kernel": ((8, 16), ("y", None)),  # x holds copies: HSDP
    "more_rows/kernel": ((8, 16), ("y", None)),
    "columns/kernel": ((16, 8), (None, "y")),
    "both/kernel": ((8, 16), ("x", "y")),
    "turned/kernel": ((8, 16), ("y", "x")),
    "joint/kernel": ((16, 8), (None, ("y", "x"))),
    "whole/kernel": ((5, 3), ()),
    "whole_too/kernel": ((3, 5), ()),
    "uneven/kernel": ((5, 16), (None, "y")),
    "blocks/up/kernel": ((4, 8, 6), ("x", "y", None)),
    "blocks/down/kernel": ((4, 6, 8), ("y", None, None)),
    "embed/embedding": ((16, 6), ("x", None)),
    "norm/scale": ((8,), ("y",)),
    "norm/bias": ((8,), ()),
}
OPTIMIZERS = [case for case in CASES if hasattr(momentax.optimizers, case.name.split("[")[0].removeprefix("momentax."))]
MODES = ("auto", "explicit", "shard_map")


def tree(values):
    nested: dict = {}
    for path, value in values.items():
        *parents, last = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, nested)[last] = value
    return nested


SPECS = tree({path: PartitionSpec(*spec, *[None] * (len(shape) - len(spec))) for path, (shape, spec) in LEAVES.items()})


def normal(seed):
    rng = np.random.default_rng(seed)
    return tree({path: jnp.asarray(rng.standard_normal(shape)) for path, (shape, _) in LEAVES.items()})


def build(case):
    keywords = dict(case.arguments)
    if "routing" in inspect.signature(case.factory).parameters:
        keywords.setdefault("routing", momentax.routing.flax(stacked="blocks"))
    return optax.with_extra_args_support(case.factory(**keywords))


def step_of(tx, traces=None):
    def step(params, state, grads, value):
        if traces is not None:
            traces.append(1)
        updates, state = tx.update(grads, state, params, value=value)
        return jax.tree.map(jnp.add, params, updates), state

    return step


def run(step, params, state, place):
    """Two steps: the second one starts from a state that is not zero."""
    for seed in (1, 2):
        params, state = step(params, state, place(normal(seed)), jnp.asarray(3.0 / seed))
    return params, state


@functools.cache
def expected(case_name, x64):
    [case] = [case for case in OPTIMIZERS if case.name == case_name]
    with jax.enable_x64(x64):
        tx, params = build(case), normal(0)
        return run(jax.jit(step_of(tx)), params, tx.init(params), lambda tree: tree)


def on_mesh(case, mode):
    """The same run on eight devices, and the shardings of the parameters and of the mirrors of them in the state."""
    kind = AxisType.Explicit if mode == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2)
    lies = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    tx = build(case) if mode == "explicit" else momentax.on_mesh(build(case), mesh, SPECS)
    params = jax.device_put(normal(0), lies)
    state_lies = momentax.sharding.state_shardings(tx, params)
    traces: list[int] = []
    step = step_of(tx, traces)
    if mode == "shard_map":
        specs = jax.tree.map(lambda sharding: sharding.spec, state_lies)
        step = jax.shard_map(step, mesh=mesh, in_specs=(SPECS, specs, SPECS, PartitionSpec()), out_specs=(SPECS, specs))
        tx_init = jax.shard_map(tx.init, mesh=mesh, in_specs=(SPECS,), out_specs=specs)
    else:
        tx_init = tx.init
    with jax.set_mesh(mesh):
        state = jax.jit(tx_init, out_shardings=state_lies)(params)
        if mode == "auto":
            step = jax.jit(step, out_shardings=(lies, state_lies))
        else:
            step = jax.jit(step)
        params, state = run(step, params, state, lambda tree: jax.device_put(tree, lies))
    assert len(traces) == 1, "a step is traced again"
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path((params, state)), jax.tree.leaves((lies, state_lies)), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), f"{jax.tree_util.keystr(path)}: {leaf.sharding}"
    return params, state


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-12), (False, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.name)
def test_placement_does_not_change_numbers(case, x64, tolerance, mode):
    with jax.enable_x64(x64):
        actual = on_mesh(case, mode)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected(case.name, x64)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("mode", [*MODES, "unchecked shard_map"])
def test_updates_have_the_gradients_of_one_device(mode):
    kind = AxisType.Explicit if mode == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2)
    specs = {"copies/kernel": PartitionSpec(), "rows/kernel": PartitionSpec("y", None)}
    alone = momentax.orthogonalize(steps=1)
    tx = alone if mode == "explicit" else momentax.on_mesh(alone, mesh, specs)

    def gradient(update):
        return jax.jit(jax.grad(lambda grads: sum(jnp.sum(u**3) for u in jax.tree.leaves(update(grads)))))

    def update(grads):
        return tx.update(grads, tx.init(grads))[0]

    if "shard_map" in mode:
        checked = mode == "shard_map"
        update = jax.shard_map(update, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=checked)
    with jax.enable_x64(True):
        tree = normal(1)
        grads = {"copies/kernel": tree["whole"]["kernel"], "rows/kernel": tree["rows"]["kernel"]}
        expected = gradient(lambda grads: alone.update(grads, alone.init(grads))[0])(grads)
        with jax.set_mesh(mesh):
            placed = {path: jax.device_put(x, NamedSharding(mesh, specs[path])) for path, x in grads.items()}
            actual = gradient(update)(placed)
        for path in specs:
            np.testing.assert_allclose(actual[path], expected[path], rtol=1e-12, atol=1e-12)


LARGE = {
    "a/kernel": ((64, 128), ("y", None)),
    "b/kernel": ((128, 64), (None, "y")),
    "c/kernel": ((64, 128), ("x", "y")),
    "c/bias": ((128,), ("y",)),
}
ROWS = 4 * 4 * (128 + 64 + 128)  # bytes of four float32 numbers for each row or channel of the kernels
RECEIVES = {
    "adamp": 2 * ROWS,
    "sgdp": 2 * ROWS,
    "lion_k[row_norm]": ROWS,
    "adan[clipped]": 200,
    "lion_k[l2 global]": 200,
    "am_adamw": 400,
    "stable_spam": 400,
    "auon": 400,
    "adamh": 400,
    "spam": 0,
    "lion_k": 0,
}


@pytest.mark.parametrize("mode", ["auto", "shard_map"])
@pytest.mark.parametrize("name", RECEIVES)
def test_what_needs_no_matrices_receives_a_few_numbers(name, mode):
    [case] = [case for case in OPTIMIZERS if case.name == f"momentax.{name}"]
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    specs = tree({path: PartitionSpec(*spec) for path, (_, spec) in LARGE.items()})
    lies = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    shapes = tree({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, (shape, _) in LARGE.items()})
    tx = momentax.on_mesh(build(case), mesh, specs)
    state_lies = momentax.sharding.state_shardings(tx, shapes, mesh, specs)
    state, step = jax.eval_shape(tx.init, shapes), step_of(tx)
    if mode == "shard_map":
        state_specs = jax.tree.map(lambda sharding: sharding.spec, state_lies)
        step = jax.shard_map(
            step, mesh=mesh, in_specs=(specs, state_specs, specs, PartitionSpec()), out_specs=(specs, state_specs)
        )
    step = jax.jit(step, in_shardings=(lies, state_lies, lies, None), out_shardings=(lies, state_lies))
    compiled = step.lower(shapes, state, shapes, jax.ShapeDtypeStruct((), jnp.float32)).compile()
    received = momentax.telemetry.count(compiled).collectives
    assert sum(found.bytes for found in received.values()) <= RECEIVES[name], received


def test_a_compiled_init_puts_the_state_where_it_belongs():
    """Without out_shardings, and without jax.set_mesh."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    lies = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    tx = momentax.muon(mesh=mesh, param_specs=SPECS, routing=momentax.routing.flax(stacked="blocks"))
    params = jax.device_put(normal(0), lies)
    state = jax.jit(tx.init)(params)
    for leaf, sharding in zip(
        jax.tree.leaves(state), jax.tree.leaves(momentax.sharding.state_shardings(tx, params)), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
