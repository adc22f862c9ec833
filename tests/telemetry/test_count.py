"""Counts of compiled programs whose operations and bytes are known."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from momentax.telemetry import Collectives, count

N = 16
PRODUCT = 2 * N**3  # FLOPs of one product of N x N matrices
SQUARE = jax.ShapeDtypeStruct((N, N), jnp.float32)


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def test_products_and_convolutions_as_the_compiler_counts_them():
    def function(x, y, images, kernel):
        dilated = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        outputs = dilated(images, kernel, (2, 2), "SAME", rhs_dilation=(1, 2), feature_group_count=4)
        return jnp.einsum("bij,bkj->bik", x, y), outputs, x[0] @ y[0].T

    shapes = (3, 64, 32), (3, 48, 32), (4, 12, 12, 8), (3, 3, 2, 16)
    program = compiled(function, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert count(program).flops == pytest.approx(program.cost_analysis()["flops"], rel=1e-3)


def test_loops_run_as_often_as_they_do():
    def outer(x, _):
        return lax.fori_loop(2, 5, lambda _, x: jnp.tanh(x @ x), x) @ x, None

    counts = count(compiled(lambda x: lax.scan(outer, x, None, length=7)[0], SQUARE))
    assert (counts.flops, counts.unknown_loops) == (7 * (3 + 1) * PRODUCT, 0)


def test_what_depends_on_data_is_counted_once_or_at_its_most():
    def function(x):
        x = lax.while_loop(lambda x: jnp.max(x) < 10, lambda x: x @ x, x)
        return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    counts = count(compiled(function, SQUARE))
    assert (counts.flops, counts.unknown_loops, counts.uneven_conditionals) == (3 * PRODUCT, 1, 1)
    assert "most expensive branch: 1" in str(counts) and "unknown number of trips, counted once: 1" in str(counts)


def test_bytes_that_each_device_receives():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def function(x):  # 8 x 64 floats on each of the four devices of a group
        gathered = lax.all_gather(x, "a", tiled=True)
        exchanged = lax.all_to_all(x, "a", 1, 0, tiled=True)
        scattered = lax.psum_scatter(x, "a", tiled=True)
        passed = lax.ppermute(x, "a", [(i, (i + 1) % 4) for i in range(4)])
        summed = lax.fori_loop(0, 3, lambda _, x: lax.psum(jnp.tanh(x), "a"), x)
        everywhere = lax.all_to_all(x, ("a", "b"), 1, 0, tiled=True)
        return gathered, exchanged, scattered, passed, summed, everywhere

    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("a"), out_specs=P("a"), check_vma=False)
    placed = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=NamedSharding(mesh, P("a")))
    counts, size = count(compiled(mapped, placed)), 4 * 8 * 64
    assert counts.collectives == {
        "all-gather": Collectives(1, 0, 3 * size),
        "all-reduce": Collectives(3, 3, 3 * 2 * size * 3 // 4),
        "reduce-scatter": Collectives(1, 0, size * 3 // 4),
        "all-to-all": Collectives(2, 0, size * 3 // 4 + size * 7 // 8),
        "collective-permute": Collectives(1, 0, size),
    }
    assert counts.total == Collectives(8, 3, sum(kind.bytes for kind in counts.collectives.values()))


def test_products_between_sharded_arrays():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.ShapeDtypeStruct((8 * N, N), jnp.float32, sharding=NamedSharding(mesh, P("a")))
    counts = count(compiled(lambda x: x.T @ x, x))
    assert counts.flops == PRODUCT and counts.collectives == {"all-reduce": Collectives(1, 0, 2 * 4 * N * N * 7 // 8)}


def test_the_share_of_a_scope():
    def function(x):
        with jax.named_scope("outside"):
            y = jnp.tanh(x @ x)
        with jax.named_scope("inside"):
            return lax.fori_loop(0, 5, lambda _, y: jnp.tanh(y @ x), y), jax.grad(lambda x: jnp.sum(x @ y))(x)

    program = compiled(function, SQUARE)
    assert [count(program, scope).flops / PRODUCT for scope in ("outside", "inside", None)] == [1, 6, 7]
    with pytest.raises(ValueError, match=r'named_scope\("side"\)'):
        count(program, "side")


def test_memory_needs_the_program():
    program = compiled(lambda x: x @ x, SQUARE)
    counts = count(program)
    assert (counts.argument_bytes, counts.output_bytes) == (4 * N * N, 4 * N * N)
    assert counts.temp_bytes == program.memory_analysis().temp_size_in_bytes
    text = count(program.as_text())
    assert text.flops == counts.flops and text.temp_bytes is None
    assert str(counts).splitlines()[:2] == ["FLOPs     8192", "argument  0.001024 MB"]


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="no optimised HLO"):
        count(jax.jit(jnp.tanh).lower(SQUARE).as_text())


# As TPUs write it: products are convolutions, those of a batch with the batch for a window; loops do not say how often
# they run; a collective that runs beside other work stands in each of the fusions that advance it.
TPU = """HloModule jit_step, is_scheduled=true, entry_computation_layout={()->f32[]{:T(128)}}, num_partitions=16

%fused_computation (param_0: f32[4,256,384], param_1: f32[4,128,384]) -> f32[4,256,128] {
  %param_0 = f32[4,256,384]{2,1,0:T(8,128)} parameter(0)
  %param_1 = f32[4,128,384]{2,1,0:T(8,128)S(1)} parameter(1)
  ROOT %convolution.1 = f32[4,256,128]{2,1,0:T(8,128)} convolution(%param_0, %param_1), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf, metadata={op_name="jit(step)/while/body/optimizer/dot_general" stack_frame_id=2}
}

%fused_computation.1 (param_0.1: bf16[1,4096,256]) -> (bf16[1,4096,256], bf16[1,4096,2048], u32[]) {
  %param_0.1 = bf16[1,4096,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.17 = bf16[1,4096,2048]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=31, replica_groups=[2,8]<=[8,2]T(1,0), dimensions={2}, use_global_device_ids=true
  ROOT %custom-call.20 = (bf16[1,4096,256]{2,1,0:T(8,128)(2,1)}, bf16[1,4096,2048]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) custom-call(%all-gather.17), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (param_0.2: bf16[1,4096,256]) -> bf16[1,4096,2048] {
  %param_0.2 = bf16[1,4096,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.19 = bf16[1,4096,2048]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.2), channel_id=31, replica_groups=[2,8]<=[8,2]T(1,0), dimensions={2}, use_global_device_ids=true
}

%all-reduce-scatter.3 (param_0.3: f32[64,128]) -> f32[16,128] {
  %param_0.3 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %constant.9 = s32[]{:T(128)} constant(0)
  %all-reduce.5 = f32[64,128]{1,0:T(8,128)} all-reduce(%param_0.3), channel_id=4, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, to_apply=%add, metadata={op_name="jit(step)/add" stack_frame_id=2}
  ROOT %dynamic-slice.5 = f32[16,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.5, %constant.9, %constant.9), dynamic_slice_sizes={16,128}
}

%fused_add (param_0.4: s32[], param_1.4: s32[]) -> s32[] {
  %param_0.4 = s32[]{:T(128)} parameter(0)
  %param_1.4 = s32[]{:T(128)} parameter(1)
  ROOT %add.6 = s32[]{:T(128)} add(%param_0.4, %param_1.4)
}

%body (param: (s32[], f32[4,256,384], /*index=2*/f32[4,128,384], s32[])) -> (s32[], f32[4,256,384], f32[4,128,384], s32[]) {
  %param = (s32[]{:T(128)}, f32[4,256,384]{2,1,0:T(8,128)}, /*index=2*/f32[4,128,384]{2,1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %constant.1 = s32[]{:T(128)} constant(2)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%param), index=0
  %get-tuple-element.2 = f32[4,256,384]{2,1,0:T(8,128)} get-tuple-element(%param), index=1
  %get-tuple-element.3 = f32[4,128,384]{2,1,0:T(8,128)} get-tuple-element(%param), index=2
  %get-tuple-element.4 = s32[]{:T(128)} get-tuple-element(%param), index=3
  %next = s32[]{:T(128)} fusion(%get-tuple-element.1, %constant.1), kind=kLoop, calls=%fused_add
  %fusion.8 = f32[4,256,128]{2,1,0:T(8,128)} fusion(%get-tuple-element.2, %get-tuple-element.3), kind=kOutput, calls=%fused_computation
  ROOT %tuple.17 = (s32[]{:T(128)}, f32[4,256,384]{2,1,0:T(8,128)}, f32[4,128,384]{2,1,0:T(8,128)}, s32[]{:T(128)}) tuple(%next, %get-tuple-element.2, %get-tuple-element.3, %get-tuple-element.4)
}

%condition (param.1: (s32[], f32[4,256,384], f32[4,128,384], s32[])) -> pred[] {
  %param.1 = (s32[]{:T(128)}, f32[4,256,384]{2,1,0:T(8,128)}, f32[4,128,384]{2,1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %get-tuple-element.21 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  %get-tuple-element.22 = s32[]{:T(128)} get-tuple-element(%param.1), index=3
  ROOT %lt.3 = pred[]{:T(512)} compare(%get-tuple-element.21, %get-tuple-element.22), direction=LT
}

ENTRY %main (x: f32[4,256,384], y: f32[4,128,384], z: bf16[1,4096,256], w: f32[64,128]) -> f32[64,128] {
  %x = f32[4,256,384]{2,1,0:T(8,128)} parameter(0)
  %y = f32[4,128,384]{2,1,0:T(8,128)} parameter(1)
  %z = bf16[1,4096,256]{2,1,0:T(8,128)(2,1)} parameter(2)
  %w = f32[64,128]{1,0:T(8,128)} parameter(3)
  %async-collective-start = (bf16[1,4096,256]{2,1,0:T(8,128)(2,1)}, bf16[1,4096,2048]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) fusion(%z), kind=kCustom, calls=%fused_computation.1
  %fusion.9 = bf16[1,4096,2048]{2,1,0:T(8,128)(2,1)} fusion(%z), kind=kCustom, calls=%async_collective_fusion.1
  %fusion.10 = f32[16,128]{1,0:T(8,128)} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.3
  %collective-permute-start = (f32[64,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%w), channel_id=1, source_target_pairs={{0,2},{2,0}}
  %collective-permute-done = f32[64,128]{1,0:T(8,128)S(1)} collective-permute-done(%collective-permute-start)
  %kernel = f32[64,128]{1,0:T(8,128)} custom-call(%w), custom_call_target="tpu_custom_call"
  %constant.3 = s32[]{:T(128)} constant(0)
  %constant.4 = s32[]{:T(128)} constant(9)
  %copy.11 = s32[]{:T(128)} copy(%constant.3)
  %tuple.19 = (s32[]{:T(128)}, f32[4,256,384]{2,1,0:T(8,128)}, f32[4,128,384]{2,1,0:T(8,128)}, s32[]{:T(128)}) tuple(%copy.11, %x, %y, %constant.4)
  %while.10 = (s32[]{:T(128)}, f32[4,256,384]{2,1,0:T(8,128)}, f32[4,128,384]{2,1,0:T(8,128)}, s32[]{:T(128)}) while(%tuple.19), condition=%condition, body=%body
  ROOT %copy = f32[64,128]{1,0:T(8,128)} copy(%collective-permute-done)
}
"""  # noqa: E501


def test_what_a_tpu_writes():
    counts = count(TPU)
    assert counts.flops == 5 * 2 * 4 * 256 * 128 * 384  # 0, 2, 4, 6, 8
    assert counts.collectives == {
        "all-gather": Collectives(1, 0, 7 * 2 * 4096 * 256),
        "reduce-scatter": Collectives(1, 0, 4 * 64 * 128 * 3 // 4),
        "collective-permute": Collectives(1, 0, 4 * 64 * 128),
    }
    assert (counts.unknown_loops, counts.uncounted) == (0, {"tpu_custom_call": 1})
    assert count(TPU, "optimizer").flops == counts.flops and not count(TPU, "optimizer").collectives


# As GPUs write it: products are calls of a library, collectives start and end apart.
GPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

%async_computation (param.2: f32[8,64]) -> f32[8,64] {
  %param.2 = f32[8,64]{1,0} parameter(0)
  ROOT %all-to-all.1 = f32[8,64]{1,0} all-to-all(%param.2), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

ENTRY %main (a: bf16[2,64,32], b: bf16[2,32,16], c: f32[8,64]) -> f32[8,64] {
  %a = bf16[2,64,32]{2,1,0} parameter(0)
  %b = bf16[2,32,16]{2,1,0} parameter(1)
  %c = f32[8,64]{1,0} parameter(2)
  %custom-call.1 = (bf16[2,64,16]{2,1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}
  %all-to-all-start = ((f32[8,64]{1,0}), f32[8,64]{1,0}) all-to-all-start(%c), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %all-to-all-done = f32[8,64]{1,0} all-to-all-done(%all-to-all-start)
  %async-start = ((f32[8,64]{1,0}), f32[8,64]{1,0}) async-start(%c), calls=%async_computation
  %async-done = f32[8,64]{1,0} async-done(%async-start), calls=%async_computation
  %all-reduce-start = f32[8,64]{1,0} all-reduce-start(%c), channel_id=2, replica_groups={}, to_apply=%add
  ROOT %all-reduce-done = f32[8,64]{1,0} all-reduce-done(%all-reduce-start)
}
"""  # noqa: E501


def test_what_a_gpu_writes():
    counts, size = count(GPU), 4 * 8 * 64
    assert counts.flops == 2 * 2 * 64 * 32 * 16 and not counts.uncounted
    assert counts.collectives == {
        "all-reduce": Collectives(1, 0, 2 * size * 7 // 8),
        "all-to-all": Collectives(2, 0, size * 3 // 4 + size * 7 // 8),
    }
