"""Which axes of a Flax kernel are outputs: from the bias beside it, its name, or the kernels of its siblings."""

import dataclasses
import re

from momentax.routing._names import is_layer, plain
from momentax.routing._rules import Rule, Shapes

DEPTHWISE = "a depthwise convolution and one on a single input channel look the same"
QUERIES = ("query", "key", "value")
_LINEN_DENSE = re.compile(r"Dense_\d+$")  # Linen gives this name, to nn.Dense alone; any other may be a DenseGeneral
_EXPERTS = re.compile(r"(?i)(^|_)experts?(_|\d|$)")
_MIXTURE = re.compile(r"(?i)moe|mixture_?of_?experts")
_FEED_FORWARD = re.compile(r"(?i)^w[io]?_?\d*$|^(gate|up|down|gate_up)(_proj)?$|^(fc|dense|linear)_?\d*$")


def kernel(keys: list[str], shape: tuple[int, ...], shapes: Shapes) -> Rule | str | None:
    """The rule of a leaf called kernel, why there is none, or None where its rank must tell."""
    rank, module = len(shape), keys[-2] if len(keys) > 1 else ""
    bias = shapes.get("/".join([*keys[:-1], "bias"]))
    if re.search(r"(?i)convtranspose", module):
        return _transposed_convolution(shape, bias)
    if re.search(r"(?i)conv", module):
        return _convolution(shape, bias)
    experts = expert_stack(keys, shape, bias)
    if experts is not None:
        return experts
    if rank > 2 and bias is not None:
        return _from_bias(shape, bias)
    if rank == 2 and bias == (shape[0],) != (shape[1],):
        return Rule("matrix", (1,), (0,), reason=f"its bias has shape {bias}: (out, in)")
    if module in (*QUERIES, "out") and _is_attention(keys, rank, shapes):
        outs, axes = (1, "(heads, head size, features)") if module == "out" else (2, "(features, heads, head size)")
        return _split(shape, outs, f"attention '{module}': {axes}", stacked=rank == 4)
    if rank == 3 and _LINEN_DENSE.search(module):
        return _split(shape, 1, f"stack of '{module}': (layers, in, out)", stacked=True)
    return None


def expert_stack(keys: list[str], shape: tuple[int, ...], bias: tuple[int, ...] | None) -> Rule | None:
    """(experts, in, out) below a module of experts; below one called moe only for the names of feed-forward layers."""
    label = label_of(keys)
    above = [key for key in keys[:-1] if _EXPERTS.search(key)]
    if not above and _FEED_FORWARD.search(label):
        above = [key for key in keys[:-1] if _MIXTURE.search(key)]
    fits = len(shape) == 3 and (bias is None or bias == (shape[0], shape[2]))
    if not above or not fits or not is_layer(keys[-1]) or label in (*QUERIES, "out"):
        return None
    return Rule("matrix", (1,), (2,), (0,), reason=f"stack below '{above[-1]}': (experts, in, out)")


def label_of(keys: list[str]) -> str:
    """What a layer is called: its own name, or that of the module which holds its kernel."""
    return plain(keys[-2] if keys[-1] in ("kernel", "w", "weight") and len(keys) > 1 else keys[-1])


def _split(shape: tuple[int, ...], outs: int, reason: str, *, stacked: bool = False) -> Rule:
    """The last `outs` axes are outputs; the first is a stack where `stacked`; the rest are inputs."""
    axes = tuple(range(len(shape)))
    batch = axes[:1] if stacked else ()
    reason += "; stacked on axis 0" if stacked else ""
    return Rule("matrix", axes[len(batch) : -outs], axes[-outs:], batch, reason)


def _stacked_like(shape: tuple[int, ...], bias: tuple[int, ...] | None) -> bool:
    """Whether the bias shows a leading stack: (layers, out...) beside (layers, in..., out...)."""
    return bias is not None and len(bias) > 1 and bias == (shape[0], *shape[-(len(bias) - 1) :])


def _from_bias(shape: tuple[int, ...], bias: tuple[int, ...]) -> Rule | str:
    outputs = shape[-len(bias) :] == bias and len(bias) < len(shape)
    stacked = _stacked_like(shape, bias) and len(bias) < len(shape)
    if outputs and stacked:
        return f"its bias {bias} fits outputs of that shape as well as a stack along axis 0"
    if outputs:
        return _split(shape, len(bias), f"its bias has shape {bias}")
    if stacked:
        return _split(shape, len(bias) - 1, f"its bias has shape {bias}", stacked=True)
    return f"its bias {bias} fits neither the last axes nor a stack along axis 0"


def _convolution(shape: tuple[int, ...], bias: tuple[int, ...] | None) -> Rule | str:
    """(spatial..., in, out); those in groups have fewer inputs, which only a single one gives away."""
    if len(shape) > 4 and bias is None:
        return "a three-dimensional convolution and a stack of two-dimensional ones look the same"
    rule = _split(shape, 1, "convolution: the last axis is the output")
    if bias is not None and _stacked_like(shape, bias):
        found = _from_bias(shape, bias)
        if isinstance(found, str):
            return found
        rule = found
    return dataclasses.replace(rule, doubt=DEPTHWISE) if len(shape) > 2 and shape[-2] == 1 else rule


def _transposed_convolution(shape: tuple[int, ...], bias: tuple[int, ...] | None) -> Rule | str:
    """`transpose_kernel=True` swaps the last two axes, which only the bias shows."""
    if bias is not None and len(bias) == 1 and shape[-1] != shape[-2]:
        if bias[0] == shape[-1]:
            return _split(shape, 1, "transposed convolution: the last axis is the output, as its bias")
        if bias[0] == shape[-2]:
            axes = tuple(range(len(shape)))
            reason = "transposed convolution: the last axis but one is the output, as its bias"
            return Rule("matrix", (*axes[:-2], axes[-1]), (axes[-2],), reason=reason)
    return "a transposed convolution may have its last two axes swapped, and no bias tells"


def _is_attention(keys: list[str], rank: int, shapes: Shapes) -> bool:
    """Whether query, key, value and out stand side by side with the shapes of attention, and not of stacked layers.

    Attention has query (features, heads, head size) and out (heads, head size, features), behind an axis of layers at
    rank 4; a stack of four plain layers has (layers, in, out) four times.
    """
    siblings = [shapes.get("/".join([*keys[:-2], name, "kernel"]), ()) for name in (*QUERIES, "out")]
    if rank not in (3, 4) or any(len(shape) != rank for shape in siblings):
        return False
    layers = rank - 3
    query, out = siblings[0][layers:], siblings[3][layers:]
    same_stack = layers == 0 or len({shape[0] for shape in siblings}) == 1
    fits_plain_layers = layers == 0 and query[0] == out[0]
    return same_stack and query[1:] == out[:2] and not fits_plain_layers
