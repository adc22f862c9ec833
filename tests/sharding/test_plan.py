"""Which matrices each device computes, and what travels."""

import jax
import jax.numpy as jnp
import pytest

from momentax.sharding import Layout, plan_matrices

MATRIX = Layout((), (0,), (1,), ((), ()))
STACK = Layout((0,), (1,), (2,), ((), (), ()))


def shape(*lengths, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(lengths, dtype)


def sharded(layout, *shards):
    return Layout(layout.batch_axes, layout.in_axes, layout.out_axes, shards)


def one(shapes, layouts, sizes, **options):
    [group] = plan_matrices(shapes, layouts, sizes, **options).groups
    return group


def test_one_group_for_each_shape_dtype_and_placement():
    rows, columns = sharded(MATRIX, ("a",), ()), sharded(MATRIX, (), ("a",))
    shapes = [shape(8, 4), shape(8, 4), shape(8, 4), shape(4, 8), shape(8, 4, dtype=jnp.bfloat16)]
    plan = plan_matrices(shapes, [rows, rows, columns, columns, rows], {"a": 4}, transposes=True)
    assert [group.members for group in plan.groups] == [(0, 1), (2,), (3,), (4,)]
    # what is dealt to the same devices is computed in one batch where it has the same shape
    dealt = [group.dealt for group in plan.groups]
    assert all(len({dealt[p] for p in batch}) == 1 for batch in plan.batches)
    assert sorted(p for batch in plan.batches for p in batch) == [0, 1, 2, 3]


def test_parts_are_exchanged_for_whole_matrices():
    """2 b V (W - 1) / W^2 bytes, the least that is possible from sharded matrices back to sharded matrices."""
    group = one([shape(16, 12, 8)], [sharded(STACK, (), ("a",), ())], {"a": 8})
    assert (group.move, group.gather, group.split, group.held) == (("a",), (), (), (2,) * 8)
    plan = plan_matrices([shape(16, 12, 8)], [sharded(STACK, (), ("a",), ())], {"a": 8})
    assert plan.received(group) == 2 * (16 * 12 * 8) * 7 // 64


@pytest.mark.parametrize("shards", [((), ("x",), ("y",)), ((), ("y",), ("x",)), ((), ("x", "y"), ())], ids=str)
def test_two_mesh_axes_are_one_exchange(shards):
    group = one([shape(64, 32, 32)], [sharded(STACK, *shards)], {"x": 16, "y": 4})
    assert group.move == group.dealt == ("x", "y")
    assert group.held == (1,) * 64 and not group.gather and not group.split


def test_stacks_that_are_sharded_need_nothing():
    group = one([shape(16, 12, 8)], [sharded(STACK, ("a",), (), ())], {"a": 8})
    assert (group.count, group.move, group.gather, group.split) == (2, (), (), ())


def test_copies_take_a_share_each():
    group = one([shape(16, 12, 8)], [STACK], {"a": 8})
    assert (group.split, group.held) == (("a",), (2,) * 8)
    hybrid = one([shape(16, 12, 8)], [sharded(STACK, (), ("f",), ())], {"r": 2, "f": 4})
    assert (hybrid.split, hybrid.move, hybrid.held) == (("r",), ("f",), (2,) * 8)


def test_one_replicated_matrix_is_computed_everywhere():
    group = one([shape(12, 8)], [MATRIX], {"a": 8})
    assert group.split == () and group.held == (1,)


def test_fewer_matrices_than_devices_travel_over_fewer_axes():
    """One device computes one matrix in any case; over all axes, empty buffers would travel."""
    sizes = {"x": 16, "y": 4}
    layout = sharded(STACK, (), ("x",), ("y",))
    for count in (1, 3, 4, 16, 40):
        plan = plan_matrices([shape(count, 64, 64)], [layout], sizes)
        [group] = plan.groups
        best = (1 + min(1, count / 64)) * 64 * 64 * 63 / 64  # a whole matrix arrives, and every shard comes back
        assert group.capacity == 1
        if count <= 16:
            assert plan.received(group) <= 1.05 * best


def test_the_rest_of_a_number_that_does_not_divide():
    group = one([shape(12, 8, 4)], [sharded(STACK, (), ("a",), ())], {"a": 8})
    assert group.held == (2,) * 8  # some of it empty; another deal would leave the busiest device as busy


def test_idle_devices_take_other_shapes():
    """16 matrices of each of four shapes on 64 devices: one each, not four on 16 of them."""
    sides = [(1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)]
    layout = sharded(STACK, (), ("a",), ())
    plan = plan_matrices([shape(16, *side) for side in sides], [layout] * 4, {"a": 64}, transposes=True)
    each = list(zip(*(group.held for group in plan.groups), strict=True))
    assert [sum(numbers) for numbers in each] == [1] * 64
    assert [sum(group.held) for group in plan.groups] == [16] * 4
    assert len(set(each)) == 4


def test_what_is_small_makes_room_for_what_is_large():
    """32 large and 64 small matrices on 64 devices: the small ones two by two on the devices without a large one."""
    layout = sharded(STACK, (), ("a",), ())
    plan = plan_matrices([shape(32, 1024, 4096), shape(64, 1024, 1024)], [layout] * 2, {"a": 64})
    each = list(zip(*(group.held for group in plan.groups), strict=True))
    assert sorted(set(each)) == [(0, 2), (1, 0)]


def test_several_shapes_use_all_mesh_axes_where_one_would_use_few():
    """Over x alone 16 matrices arrive with fewer bytes; three shapes then compute three times as long."""
    sizes, layout = {"x": 16, "y": 4}, sharded(STACK, (), ("x",), ("y",))
    shapes = [shape(16, 1024, 1024 + 64 * n) for n in range(3)]
    assert one(shapes[:1], [layout], sizes).dealt == ("x",)
    groups = plan_matrices(shapes, [layout] * 3, sizes).groups
    assert {group.dealt for group in groups} == {("x", "y")}
    assert max(map(sum, zip(*(group.held for group in groups), strict=True))) == 1


def test_copies_gather_only_places_that_are_used():
    """96 matrices on 8 x 64 devices: two of the eight places of each copy, not eight."""
    sizes = {"copies": 64, "f": 8}
    layout = sharded(STACK, (), ("f",), ())
    others = [shape(n, 4096, 4096 + 64 * n) for n in (128, 64)]
    plan = plan_matrices([shape(96, 4096, 4096), *others], [layout] * 3, sizes)
    group = plan.groups[0]
    assert (group.move, group.split, group.dealt) == (("f",), ("copies",), ("f", "copies"))
    assert group.used(sizes).sum() == 2
    there_and_back, gathered = 2 * 4096**2 * 7 / 8, 2 * 4096**2 / 8 * 63
    assert plan.received(group) == there_and_back + gathered


def test_copies_may_be_left_alone():
    group = one([shape(16, 12, 8)], [STACK], {"a": 8}, share_copies=False)
    assert (group.split, group.held) == ((), (16,))


def test_mesh_axes_of_one_device_do_not_count():
    group = one([shape(4, 8, 8)], [sharded(STACK, (), ("a", "b"), ())], {"a": 1, "b": 2})
    assert group.move == ("b",)
    assert plan_matrices([shape(8, 8)], [sharded(MATRIX, ("a",), ())], None).groups[0].move == ()
