"""Matrices computed whole, in few batches, wherever they lie."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from momentax.sharding import Place, distribute

STACK = ((0,), (1,), (2,), 1)


def stacks(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def cube(x):
    return jnp.matmul(jnp.matmul(x, x.mT), x)


def rows_in_order(x):
    """Not indifferent to the order of rows and columns, nor to transposition."""
    rows, columns = jnp.cumsum(x, axis=1), jnp.cumsum(x, axis=2)
    return rows + 2 * columns


def spread(function, arrays, axes=None, places=None, **options):
    axes = [STACK] * len(arrays) if axes is None else axes
    places = [Place()] * len(arrays) if places is None else places
    return distribute("test", function, arrays, axes, places, **options)


def collectives(compiled):
    found = re.findall(r" (all-to-all|all-gather|all-reduce|collective-permute)(?:-start)?\(", compiled.as_text())
    return {kind: found.count(kind) for kind in sorted(set(found))}


def test_one_call_for_each_shape_and_dtype_and_the_order_is_kept():
    given = [*stacks((1, 2, 3), (2, 4, 4), (3, 2, 3), (0, 2, 3)), jnp.ones((1, 2, 3), jnp.bfloat16)]
    calls = []

    def function(x):
        calls.append((x.shape, x.dtype))
        return 2 * x

    results = spread(function, given)
    assert calls == [((4, 2, 3), jnp.float32), ((2, 4, 4), jnp.float32), ((1, 2, 3), jnp.bfloat16)]
    for result, stack in zip(results, given, strict=True):
        assert result.dtype == stack.dtype
        np.testing.assert_array_equal(result, 2 * stack)
    assert spread(cube, []) == []


def test_transposed_matrices_may_share_a_batch():
    given = stacks((2, 2, 3), (1, 3, 2))
    calls = []
    results = spread(lambda x: calls.append(x.shape) or cube(x), given, transposes=True)
    assert calls == [(3, 2, 3)]
    for result, stack in zip(results, given, strict=True):
        np.testing.assert_allclose(result, cube(stack), rtol=1e-5)


ONE, TWO, HYBRID = {"a": 8}, {"x": 4, "y": 2}, {"r": 2, "f": 4}
PLACEMENTS = {
    "rows": (ONE, [((8, 16), ("a",)), ((8, 16), ("a",)), ((3, 16, 8), (None, "a"))]),
    "columns": (ONE, [((10, 3, 16), (None, None, "a"))]),
    "stacked": (ONE, [((16, 5, 3), ("a",)), ((8, 3, 5), ("a",))]),
    "replicated": (ONE, [((11, 5, 3), ()), ((3, 5), ())]),
    "one matrix on many devices": (ONE, [((16, 8), (None, "a"))]),
    "both axes": (TWO, [((8, 8, 6), (None, "x", "y")), ((9, 6, 8), (None, "y", "x"))]),
    "one axis over both": (TWO, [((8, 8, 3), (None, ("x", "y"))), ((8, 3, 8), (None, None, ("y", "x")))]),
    "stacks and rows": (TWO, [((8, 8, 6), ("x", "y")), ((6, 8, 6), ("y", None, None))]),
    "few on both axes": (TWO, [((4, 8, 6), (None, "x", "y")), ((2, 8, 6), (None, "x", "y"))]),
    "hybrid": (HYBRID, [((8, 8, 6), (None, "f")), ((5, 6, 8), (None, None, "f"))]),
    "few on copies": (HYBRID, [((3, 8, 6), (None, "f")), ((2, 6, 8), (None, None, "f")), ((5, 4, 6), (None, "f"))]),
    "several shapes on idle devices": (
        ONE,
        [((2, 16, 8), (None, "a")), ((2, 8, 8), (None, "a")), ((4, 8, 24), (None, "a"))],
    ),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize("case", PLACEMENTS, ids=str)
def test_numbers_and_places_are_those_of_one_device(kind, case):
    """A function that would notice any change of order, on every placement."""
    sizes, leaves = PLACEMENTS[case]
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))
    given = stacks(*(shape for shape, _ in leaves))
    axes = [STACK if x.ndim == 3 else ((), (0,), (1,), 1) for x in given]
    specs = [PartitionSpec(*spec) for _, spec in leaves]
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(given, specs, strict=True)]

    def run(arrays):
        on = mesh if kind == AxisType.Auto else jax.typeof(arrays[0]).sharding.mesh
        return spread(rows_in_order, arrays, axes, [Place(on, spec) for spec in specs])

    results = jax.jit(run)(placed)
    for result, x, spec in zip(results, given, specs, strict=True):
        expected = rows_in_order(x if x.ndim == 3 else x[None]).reshape(x.shape)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
        assert result.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim)


def test_any_axes_in_any_order():
    """Stacks behind matrices, two output axes of which the second is sharded, outputs in front of inputs."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    given = stacks((8, 8, 3, 4), (6, 8, 5))
    axes = [((2,), (0,), (3, 1), 1), ((2,), (1,), (0,), 1)]
    specs = [PartitionSpec("x", "y"), PartitionSpec("y", "x")]
    results = jax.jit(lambda arrays: spread(rows_in_order, arrays, axes, [Place(mesh, spec) for spec in specs]))(given)
    for result, x, (batch, ins, outs, _) in zip(results, given, axes, strict=True):
        order = (*batch, *ins, *outs)
        turned = x.transpose(order)
        stack = turned.reshape(x.shape[batch[0]], x.shape[ins[0]], -1)
        back = rows_in_order(stack).reshape(turned.shape).transpose(np.argsort(order))
        np.testing.assert_allclose(result, back, rtol=1e-5, atol=1e-5)


def test_matrices_side_by_side_on_a_sharded_axis():
    """Three in one leaf, of which no device holds a whole number: they travel together and are computed apart."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    [x] = stacks((6, 8, 2, 24))
    axes, spec = [((0,), (1,), (2, 3), 3)], PartitionSpec(None, "y", None, "x")
    calls = []

    def function(matrices):
        calls.append(matrices.shape)
        return rows_in_order(matrices)

    [result] = jax.jit(lambda x: spread(function, [x], axes, [Place(mesh, spec)]))(x)
    parts = [rows_in_order(part.reshape(6, 8, 16)).reshape(6, 8, 2, 8) for part in jnp.split(x, 3, axis=3)]
    np.testing.assert_allclose(result, jnp.concatenate(parts, axis=3), rtol=1e-5, atol=1e-5)
    assert calls == [(3, 8, 16)]


@pytest.mark.parametrize(
    "case, expected",
    [
        ("rows", {"all-to-all": 4}),
        ("stacked", {}),
        ("both axes", {"all-to-all": 4}),
        ("one matrix on many devices", {"all-gather": 1}),
        ("replicated", {"all-gather": 1}),
    ],
    ids=str,
)
def test_collectives_are_two_for_each_group_and_none_inside(case, expected):
    sizes, leaves = PLACEMENTS[case]
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    specs = [PartitionSpec(*spec) for _, spec in leaves]
    axes = [STACK if len(shape) == 3 else ((), (0,), (1,), 1) for shape, _ in leaves]
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for (shape, _), spec in zip(leaves, specs, strict=True)
    ]

    def iterate(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: cube(x), x)

    run = jax.jit(lambda arrays: spread(iterate, arrays, axes, [Place(mesh, spec) for spec in specs]))
    assert collectives(run.lower(shapes).compile()) == expected


def test_what_travels_may_be_narrower():
    """Asked of the program as written: the CPU backend widens what travels."""
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    place = Place(mesh, PartitionSpec(None, "a"))
    given = jax.ShapeDtypeStruct((8, 8, 8), jnp.float32, sharding=NamedSharding(mesh, place.spec))
    for dtype, written in ((None, "f32"), (jnp.bfloat16, "bf16")):
        run = functools.partial(spread, cube, places=[place], wire_dtype=dtype)
        text = jax.jit(lambda x, run=run: run([x])).lower(given).as_text()
        travels = re.findall(r'"stablehlo.all_to_all".*?->\s*tensor<[0-9x]*x(\w+)>', text, re.DOTALL)
        assert travels == [written] * 2
