"""The conventions of Equinox.

`weight` is (out, in) in Linear; (out, in, spatial...) in Conv, whose bias is (out, 1, ...); (vocabulary, features) in
Embedding; shaped as its bias in LayerNorm. The gates of GRUCell and LSTMCell lie side by side along the
outputs of `weight_ih` and `weight_hh`. Leaves show neither module nor layout: bias and name tell.
"""

import dataclasses
import re

from momentax.routing._flax import table
from momentax.routing._fused import fused_blocks
from momentax.routing._heads import heads_named
from momentax.routing._kernels import DEPTHWISE
from momentax.routing._names import is_layer, is_table, is_vector, named_key
from momentax.routing._rules import Rule, RuleSet, Shapes
from momentax.routing._stacks import stacks_stated

_CONVOLUTION = re.compile(r"(?i)conv")
_NORM = re.compile(r"(?i)norm|(^|_)ln(_|\d|$)")


def equinox(stacked: str | None = None, axis: int = 0, *, head: str | None = None) -> RuleSet:
    """The rule set for Equinox modules, filtered (`eqx.filter(model, eqx.is_inexact_array)`), for `routing=`.

    A Linear without bias and an Embedding look the same: an Embedding is recognised by a name with embed, wte, vocab
    or the like, a Linear by one such as query_proj, fc1, up, head, or by standing behind another in `layers`. Otherwise
    the weight is read as (out, in) with a doubt: methods that only need axes go on, matrix methods refuse it. Leaves of
    rank 2 and more of a module of one's own are refused: they may be (in, out) or (out, in).

    Args:
      stacked: a regular expression searched in the path: matching leaves have an axis of layers or experts, as made by
        `eqx.filter_vmap`, and the rules apply to the rest of their axes.
      axis: the axis of `stacked`, the same for all its leaves, negative from the end.
      head: pattern of whole paths of matrices that give the logits, beside those that `flax` recognises by name.

    Example:
      >>> shapes = {"layers/0/weight": (8, 4), "layers/0/bias": (8,)}
      >>> equinox().rule("layers/0/weight", (8, 4), shapes).out_axes
      (0,)
      >>> equinox(head="layers/0/*").rule("layers/0/weight", (8, 4), shapes).kind
      'head'
    """

    def read(path: str, shape: tuple[int, ...], shapes: Shapes) -> Rule | str:
        return _rule(path.split("/"), shape, shapes)

    return RuleSet(heads_named(stacks_stated(read, stacked, axis), head))


def _rule(keys: list[str], shape: tuple[int, ...], shapes: Shapes) -> Rule | str:
    """The rule of a leaf of one layer, or why there is none."""
    name, module = keys[-1], named_key(keys[:-1])
    if len(shape) < 2:
        return Rule("vector", reason=f"rank {len(shape)}")
    if is_vector(name):
        return Rule("vector", reason=f"named '{name}'")
    if name == "g" and any("/".join([*keys[:-1], "layer", kind]) in shapes for kind in ("weight", "bias")):
        return Rule("vector", reason="the norms of WeightNorm")
    if name in ("weight_ih", "weight_hh") and len(shape) == 2:
        return _cell(keys, shapes)
    if name != "weight":
        if is_table(named_key(keys)):
            return table(named_key(keys), shape)
        return "a leaf of a module of one's own may be (in, out) or (out, in)"
    bias = shapes.get("/".join([*keys[:-1], "bias"]))
    if bias == shape or (bias is None and _NORM.search(module)):
        return Rule(
            "vector", reason="normalisation: " + (f"named '{module}'" if bias is None else "shaped as its bias")
        )
    if len(shape) > 2:
        return _convolution(module, shape, bias)
    rule = _linear(keys, module, shape, bias)
    return rule if isinstance(rule, str) or not rule.is_matrix else fused_blocks(rule, keys, shape, shapes)


def _linear(keys: list[str], module: str, shape: tuple[int, ...], bias: tuple[int, ...] | None) -> Rule | str:
    rule = Rule("matrix", (1,), (0,), reason="Linear: (out, in)")
    if bias is not None:
        if bias == (shape[0],):
            return rule
        return f"its bias {bias} does not fit (out, in)"
    if is_table(module):
        return table(module, shape)
    behind_another = keys[-3:-2] == ["layers"] and keys[-2] != "0"
    if behind_another or (module != "layers" and is_layer(module)):
        return rule
    return dataclasses.replace(rule, doubt="a Linear without bias and an Embedding look the same")


def _convolution(module: str, shape: tuple[int, ...], bias: tuple[int, ...] | None) -> Rule | str:
    """(out, in, spatial...), those of ConvTranspose too; in groups the inputs are those of one."""
    rank = len(shape)
    axes, named = tuple(range(rank)), _CONVOLUTION.search(module) is not None
    convolution = bias == (shape[0], *[1] * (rank - 2)) or (bias is None and named)
    stacked = bias == shape[:2] and rank == 3
    if convolution and (named or not stacked):
        if bias is None and rank > 4:
            return "a three-dimensional convolution and a stack of two-dimensional ones look the same"
        doubt = DEPTHWISE if shape[1] == 1 else ""
        return Rule("matrix", axes[1:], axes[:1], reason="convolution: (out, in, spatial...)", doubt=doubt)
    if stacked and not convolution:
        return Rule("matrix", (2,), (1,), (0,), reason=f"its bias has shape {bias}: (layers, out, in)")
    return f"a weight of rank {rank} may be a convolution or a stack, and no name or bias tells"


def _cell(keys: list[str], shapes: Shapes) -> Rule:
    """As many gates as `weight_hh` is longer than wide: three in GRUCell, four in LSTMCell."""
    rule = Rule("matrix", (1,), (0,), reason="recurrent cell: (gates of out, in)")
    hidden = shapes.get("/".join([*keys[:-1], "weight_hh"]), ())
    gates = next((gates for gates in (3, 4) if len(hidden) == 2 and hidden[0] == gates * hidden[1]), None)
    if gates is None:
        return rule
    return dataclasses.replace(rule, blocks=gates, reason=f"recurrent cell of {gates} gates: (gates of out, in)")
