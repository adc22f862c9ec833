"""What one instruction of an optimised HLO program costs: operations of a product, bytes that a collective receives."""

import functools
import math
import re
from collections.abc import Callable

import numpy as np

from momentax.telemetry._hlo import Computation, Instruction

ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
# Bytes that a device receives for a byte of its operand, in a group of w devices.
RECEIVED: dict[str, Callable[[int], float]] = {
    "all-gather": lambda w: w - 1,
    "all-reduce": lambda w: 2 * (w - 1) / w,
    "reduce-scatter": lambda w: (w - 1) / w,
    "all-to-all": lambda w: (w - 1) / w,
    "collective-permute": lambda w: 1,
    "collective-broadcast": lambda w: 1,
    "ragged-all-to-all": lambda w: 1,
}


def dimensions(shape: str) -> list[int]:
    """Of the first array in a shape.

    >>> dimensions("(bf16[8,128]{1,0:T(8,128)(2,1)}, s8[64]{0})")
    [8, 128]
    """
    found = ARRAY.search(shape)
    return [int(size) for size in re.findall(r"\d+", found[2])] if found else []


def size_in_bytes(shape: str) -> int:
    """Of all arrays in a shape.

    >>> size_in_bytes("(bf16[8,128]{1,0:T(8,128)(2,1)}, pred[64]{0}, f32[])")
    2116
    """
    bits = 0
    for dtype, sizes in ARRAY.findall(shape):
        width = re.search(r"\d+", dtype)
        elements = math.prod(map(int, re.findall(r"\d+", sizes)))
        bits += elements * (int(width[0]) if width else {"pred": 8}.get(dtype, 0))
    return bits // 8


def dot_flops(computation: Computation, dot: Instruction) -> int:
    return _product_flops(computation, dot, dot.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))


def library_flops(computation: Computation, call: Instruction) -> int | None:
    """Of a product that a GPU's library computes; None for other custom calls."""
    contracted = call.attribute(r'lhs_contracting_dimensions":\[([^\]]*)\]')
    known = call.attribute(r'custom_call_target="(__cublas)') and contracted
    return _product_flops(computation, call, contracted) if known else None


def _product_flops(computation: Computation, product: Instruction, contracted: str) -> int:
    left = dimensions(next(computation.operands(product)).shape)
    inner = [left[int(axis)] for axis in re.findall(r"\d+", contracted)]
    return 2 * math.prod(dimensions(product.shape)) * math.prod(inner)


def convolution_flops(computation: Computation, convolution: Instruction) -> int:
    """A TPU's matrix products are convolutions, too; those of a batch have the batch for a window, mostly padding."""
    labels = re.findall(r"\w+", convolution.attribute(r"dim_labels=(\w+_\w+->\w+)").replace("_", " "))
    shapes = [operand.shape for operand in computation.operands(convolution)] + [convolution.shape]
    image, kernel, result = (
        dict(zip(names, dimensions(shape), strict=True)) for names, shape in zip(labels, shapes, strict=True)
    )
    window = {name: convolution.attribute(rf"window=\{{[^}}]*\b{name}=([\w\-]+)") for name in _NO_WINDOW}
    pairs = 1
    for axis in sorted(set(image) - set("bf")):
        stride, padding, dilate_image, dilate_kernel = (
            (window[name].split("x") if window[name] else [default] * (int(axis) + 1))[int(axis)]
            for name, default in _NO_WINDOW.items()
        )
        pairs *= _pairs(
            image[axis],
            kernel[axis],
            result[axis],
            int(stride),
            int(padding.split("_")[0]),
            int(dilate_image),
            int(dilate_kernel),
        )
    groups = int(convolution.attribute(r"feature_group_count=(\d+)") or 1)
    batches = int(convolution.attribute(r"batch_group_count=(\d+)") or 1)
    return 2 * (image["b"] // batches) * (image["f"] // groups) * result["f"] * pairs


_NO_WINDOW = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}


@functools.lru_cache
def _pairs(
    image: int, kernel: int, result: int, stride: int, padding: int, dilate_image: int, dilate_kernel: int
) -> int:
    """Pairs of an entry of the kernel and one of the result that meet an entry of the image and no padding."""
    corners = np.arange(result) * stride - padding
    total = 0
    for offset in range(kernel):
        positions = corners + offset * dilate_kernel
        inside = (positions >= 0) & (positions <= (image - 1) * dilate_image) & (positions % dilate_image == 0)
        total += int(inside.sum())
    return total


def received_bytes(computation: Computation, collective: Instruction, kind: str, devices: int) -> float:
    """Bytes that a device receives; `devices` are those of the program."""
    if kind == "collective-permute" and not re.search(r"\{(\d+),(?!\1\})\d+\}", collective.rest):
        return 0  # every device sends to itself
    operands = sum(size_in_bytes(operand.shape) for operand in computation.operands(collective))
    return operands * RECEIVED[kind](group_size(collective.rest, devices))


def group_size(attributes: str, devices: int) -> int:
    """How many devices exchange data with one another.

    >>> group_size("replica_groups={{0,2,4},{1,3,5}}, dimensions={0}", 6)
    3
    >>> group_size("replica_groups=[2,3]<=[3,2]T(1,0)", 6), group_size("replica_groups={}", 6)
    (3, 6)
    >>> group_size("replica_groups=mesh['a'=4,'b'=2,'c'=3] {'a','c'}", 24)
    12
    >>> group_size("replica_groups=mesh['a'=8,'b'=3], device_ids=([3,8]T(1,0)) {'a':(2)4}", 24)
    4
    """
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes):
        return max(len(group.split(",")) for group in found[1].split("},"))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=[^{]*\))?(?: \{([^}]*)\})?", attributes):
        axes = dict(re.findall(r"'([^']*)'=(\d+)", found[1]))
        if found[2] is None:
            return math.prod(map(int, axes.values()))
        named = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or axes[axis]) for axis, part in named)
    return devices
