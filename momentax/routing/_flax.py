"""The default rules: the conventions of Flax, Linen and NNX.

A kernel is (in..., out...); a convolution's is (spatial..., in, out); an embedding is (vocabulary, features). Which of
the axes of a kernel of rank 3 or more are outputs stands in the shape of the bias beside it, in its name (Conv, Linen's
Dense_0), or in the shapes of query, key, value and out side by side. Where none tells, the leaf is refused.
"""

import re

from momentax.routing._rules import Rule, RuleSet, Shapes

_VECTORS = re.compile(r"(?i)(^|_)(bias|scale|beta|gamma|negative_slope|mean|var)$")
_CONVOLUTION = re.compile(r"(?i)conv")
_LINEN_DENSE = re.compile(r"Dense_\d+$")  # Linen gives this name, to nn.Dense alone; any other may be a DenseGeneral
_HEADS_OUT = ("query", "key", "value")


def flax(stacked: str | None = None) -> RuleSet:
    """The default rule set, as a value for `routing=`.

    Args:
      stacked: a regular expression searched in the path: matching leaves have a leading axis of layers or experts
        (as `nn.scan` and `nnx.vmap` put it by default), and the rules apply to the rest of their axes. None reads
        stacks from biases and well-known names alone.

    Example:
      >>> import jax.numpy as jnp
      >>> flax().rule("conv/kernel", (3, 3, 4, 8), {}).out_axes
      (3,)
      >>> flax(stacked="blocks").rule("blocks/dense/kernel", (12, 4, 8), {}).batch_axes
      (0,)
    """
    if stacked is None:
        return RuleSet(lambda path, shape, shapes: _rule(path.split("/"), shape, shapes))
    pattern = re.compile(stacked)

    def rule(path: str, shape: tuple[int, ...], shapes: Shapes) -> Rule | str:
        if not pattern.search(path) or not shape:
            return _rule(path.split("/"), shape, shapes)
        inner = {key: value[1:] if pattern.search(key) else value for key, value in shapes.items()}
        found = _rule(path.split("/"), shape[1:], inner)
        if isinstance(found, str):
            return found
        ins, outs, batch = (
            tuple(axis + 1 for axis in axes) for axes in (found.in_axes, found.out_axes, found.batch_axes)
        )
        return Rule(found.kind, ins, outs, (0, *batch), f"{found.reason}; stacked on axis 0")

    return RuleSet(rule)


def _rule(keys: list[str], shape: tuple[int, ...], shapes: Shapes) -> Rule | str:
    """The rule of a leaf that is not known to be stacked, or why there is none."""
    rank, name = len(shape), keys[-1]
    module = keys[-2] if len(keys) > 1 else ""
    if rank < 2:
        return Rule("vector", reason=f"rank {rank}")
    if _VECTORS.search(name):
        return Rule("vector", reason=f"named '{name}'")
    if name == "embedding" and rank == 2:
        return Rule("embedding", (0,), (1,), reason="named 'embedding': (vocabulary, features)")
    if name == "weight":
        return "a leaf named 'weight' is (out, in) in Equinox and torch, (in, out) elsewhere"
    if re.search(r"(?i)einsum", module):
        return "the kernel of an Einsum does not tell its inputs from its outputs"
    if name == "kernel":
        bias = shapes.get("/".join([*keys[:-1], "bias"]))
        if re.search(r"(?i)convtranspose", module):
            return _transposed_convolution(shape, bias)
        if _CONVOLUTION.search(module) and rank > 4 and bias is None:
            return "a three-dimensional convolution and a stack of two-dimensional ones look the same"
        if _CONVOLUTION.search(module) and not _stacked_like(shape, bias):
            return _split(shape, 1, "convolution: the last axis is the output")
        if rank > 2 and bias is not None:
            return _from_bias(shape, bias)
        if module in (*_HEADS_OUT, "out") and _is_attention(keys, rank, shapes):
            outs, axes = (1, "(heads, head size, features)") if module == "out" else (2, "(features, heads, head size)")
            return _split(shape, outs, f"attention '{module}': {axes}", stacked=rank == 4)
        if rank == 3 and _LINEN_DENSE.search(module):
            return _split(shape, 1, f"stack of '{module}': (layers, in, out)", stacked=True)
    if rank == 2:
        return Rule("matrix", (0,), (1,), reason="rank 2: (in, out)")
    return f"rank {rank} and no name or bias that tells which axes are outputs"


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
    siblings = [shapes.get("/".join([*keys[:-2], name, "kernel"]), ()) for name in (*_HEADS_OUT, "out")]
    if rank not in (3, 4) or any(len(shape) != rank for shape in siblings):
        return False
    layers = rank - 3
    query, out = siblings[0][layers:], siblings[3][layers:]
    same_stack = layers == 0 or len({shape[0] for shape in siblings}) == 1
    fits_plain_layers = layers == 0 and query[0] == out[0]
    return same_stack and query[1:] == out[:2] and not fits_plain_layers
