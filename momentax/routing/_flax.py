"""The default rules: the conventions of Flax, Linen and NNX.

A kernel is (in..., out...); a convolution's is (spatial..., in, out); an embedding is (vocabulary, features). Which of
the axes of a kernel of rank 3 or more are outputs stands in the shape of the bias beside it, in its name (Conv, Linen's
Dense_0), or in the shapes of query, key, value and out side by side. Where none tells, the leaf is refused.

A leaf of rank 2 with a name of its own, which is neither that of a layer nor that of a table, is read as (in, out) with
a doubt: methods that need axes go on, matrix methods ask for a statement.
"""

import re

from momentax.routing._fused import fused_axis, fused_blocks, heads_apart
from momentax.routing._heads import heads_named
from momentax.routing._kernels import expert_stack, kernel, label_of
from momentax.routing._names import is_layer, is_table, is_vector, named_key
from momentax.routing._rules import Rule, RuleSet, Shapes
from momentax.routing._stacks import stacks_stated


def flax(stacked: str | None = None, axis: int = 0, *, head: str | None = None, split_heads: bool = False) -> RuleSet:
    """The default rule set, as a value for `routing=`.

    Output heads are matrices below a module called lm_head, head, logits, classifier, unembed, readout or the like. A
    router is a matrix as any other. Kernels of experts are (experts, in, out) below a module called experts, and below
    one called moe where they are called wi, wo, w1, gate_proj, ... The three matrices of a fused qkv or c_attn and the
    gates of NNX's LSTM and GRU cells are read apart. Convolutions in groups are read as one matrix of the inputs of a
    group: their shape does not tell.

    Args:
      stacked: a regular expression searched in the path: matching leaves have an axis of layers or experts, and the
        rules apply to the rest of their axes. None reads stacks from biases and well-known names alone.
      axis: the axis of `stacked`, the same for all its leaves, negative from the end: where `nn.scan` with
        variable_axes={"params": axis} or `nnx.vmap` with out_axes=axis puts it.
      head: pattern of whole paths (`*` also crosses slashes) of matrices that give the logits, beside those recognised.
      split_heads: whether each head of a rank-3 attention kernel is a matrix of its own. By default a projection is
        one matrix for all heads, as in Muon's code.

    Example:
      >>> import jax.numpy as jnp
      >>> flax().rule("conv/kernel", (3, 3, 4, 8), {}).out_axes
      (3,)
      >>> flax(stacked="blocks").rule("blocks/dense/kernel", (12, 4, 8), {}).batch_axes
      (0,)
      >>> flax().rule("lm_head/kernel", (4, 8), {}).kind
      'head'
    """

    def read(path: str, shape: tuple[int, ...], shapes: Shapes) -> Rule | str:
        return _read(path.split("/"), shape, shapes, split_heads)

    return RuleSet(heads_named(stacks_stated(read, stacked, axis), head))


def _read(keys: list[str], shape: tuple[int, ...], shapes: Shapes, apart: bool) -> Rule | str:
    """The rule of a leaf of one layer, its fused matrices and heads told apart."""
    fused = fused_axis(keys, shape, shapes.get("/".join([*keys[:-1], "bias"])))
    rule = fused or _rule(keys, shape, shapes)
    if isinstance(rule, str) or not rule.is_matrix:
        return rule
    rule = fused or fused_blocks(rule, keys, shape, shapes)
    return heads_apart(rule, keys, shapes) if apart else rule


def _rule(keys: list[str], shape: tuple[int, ...], shapes: Shapes) -> Rule | str:
    """The rule of a leaf of one layer, or why there is none."""
    rank, name = len(shape), keys[-1]
    if rank < 2:
        return Rule("vector", reason=f"rank {rank}")
    if is_vector(name):
        return Rule("vector", reason=f"named '{name}'")
    if name == "weight":
        return "a leaf named 'weight' is (out, in) in Equinox and torch, (in, out) elsewhere"
    if is_table(named_key(keys)):
        return table(named_key(keys), shape)
    if len(keys) > 1 and re.search(r"(?i)einsum", keys[-2]):
        return "the kernel of an Einsum does not tell its inputs from its outputs"
    found = kernel(keys, shape, shapes) if name == "kernel" else expert_stack(keys, shape, None)
    if found is not None:
        return found
    if rank > 2:
        return f"rank {rank} and no name or bias that tells which axes are outputs"
    if label_of(keys) == "router":
        return Rule("matrix", (0,), (1,), reason="router: (features, experts)")
    doubt = "" if is_layer(named_key(keys)) else f"the name '{named_key(keys)}' does not say that it is a matrix"
    return Rule("matrix", (0,), (1,), reason="rank 2: (in, out)", doubt=doubt)


def table(name: str, shape: tuple[int, ...]) -> Rule | str:
    """One vector a token, position or code; axes of one entry, as in (1, positions, features), do not count."""
    last = len(shape) - 1
    if sum(size > 1 for size in shape[:-1]) > 1:
        return (
            f"named '{name}' like an embedding, and rank {last + 1} may be a grid of positions or a stack of tables, "
            "momentax.routing.embedding(1, 2, batch_axes=(0,))"
        )
    axes = "(vocabulary, features)" if last == 1 else "(..., positions, features)"
    return Rule("embedding", tuple(range(last)), (last,), reason=f"named '{name}': {axes}")
