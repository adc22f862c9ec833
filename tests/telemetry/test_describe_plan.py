"""What a plan says is what is compiled."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import momentax
from momentax import telemetry

TREES = {
    "rows and columns": {"a/kernel": ((64, 128), ("y", None)), "b/kernel": ((128, 64), (None, "y"))},
    "both axes, copies": {"a/kernel": ((64, 128), ("x", "y")), "b/kernel": ((48, 48), ())},
    "several shapes": {f"{n}/kernel": ((32 * n, 64), (("x", "y"), None)) for n in (1, 2, 3)},
    "stacks": {"blocks/kernel": ((8, 32, 16), ("y", "x", None)), "a/kernel": ((32, 16), ("x", None))},
}


@pytest.mark.parametrize("tree", TREES)
def test_collectives_and_bytes_are_those_of_the_compiled_update(tree):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, (shape, _) in TREES[tree].items()}
    specs = {path: PartitionSpec(*spec) for path, (_, spec) in TREES[tree].items()}
    routing = momentax.routing.flax(stacked="blocks")
    plan = telemetry.describe_plan(shapes, mesh, specs, routing)
    tx = momentax.orthogonalize(mesh=mesh, param_specs=specs, routing=routing)
    lies = {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
    step = jax.jit(lambda g: tx.update(g, tx.init(g))[0], in_shardings=(lies,), out_shardings=lies)
    found = telemetry.count(step.lower(shapes).compile()).total
    assert (plan.collectives, plan.received) == (found.number, found.bytes)
    assert plan.devices == 8
    assert str(plan.collectives) in str(plan)


def test_without_matrices_nothing_travels():
    plan = telemetry.describe_plan({"bias": jnp.ones(8)}, jax.make_mesh((8,), ("x",)), PartitionSpec())
    assert (plan.devices, plan.collectives, plan.received, plan.flops) == (8, 0, 0, 0)


def test_a_mesh_is_needed():
    with pytest.raises(ValueError, match="describe_plan: nobody knows the mesh: give `mesh`"):
        telemetry.describe_plan({"kernel": jnp.ones((4, 4))}, None, PartitionSpec())


def test_count_takes_compiled_programs():
    with pytest.raises(ValueError, match="give it what jax.jit"):
        telemetry.count(jax.jit(lambda x: x))
