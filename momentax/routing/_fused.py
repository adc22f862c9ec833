"""Several matrices in one kernel: fused query, key and value, the gates of recurrent cells, the heads of attention."""

import dataclasses
import math

from momentax.routing._kernels import QUERIES, label_of
from momentax.routing._names import is_attention
from momentax.routing._rules import Rule, Shapes

_THREE = ("qkv", "qkv_proj", "proj_qkv", "to_qkv", "wqkv", "w_qkv", "fused_qkv", "c_attn")
_TWO = ("kv", "kv_proj", "proj_kv", "to_kv", "w_kv", "fused_kv", "key_value")
_OUT_PROJECTIONS = ("out", "out_proj", "o_proj", "c_proj", "proj", "to_out", "output", "dense")


def fused_axis(keys: list[str], shape: tuple[int, ...], bias: tuple[int, ...] | None) -> Rule | None:
    """A fused projection where one axis holds query, key and value, as (features, 3, heads, head size)."""
    label, rank = label_of(keys), len(shape)
    size = 3 if label in _THREE else 2 if label in _TWO else 0
    if not size or rank not in (3, 4) or bias not in (None, shape[1:]):
        return None
    axes = [axis for axis in range(1, rank - 1) if shape[axis] == size]
    if len(axes) != 1:  # none, or the heads are as many
        return None
    outs = tuple(axis for axis in range(1, rank) if axis not in axes)
    return Rule("matrix", (0,), outs, tuple(axes), reason=f"'{label}': axis {axes[0]} tells its {size} matrices apart")


def fused_blocks(rule: Rule, keys: list[str], shape: tuple[int, ...], shapes: Shapes) -> Rule:
    """The rule with the number of matrices that lie side by side, or with a doubt where that cannot be told."""
    label = label_of(keys)
    if label in ("dense_i", "dense_h") and len(shape) == 2:
        return _cell(rule, keys, shapes)
    if label in _TWO:
        return _key_value(rule, label, shape)
    if label in _THREE or (label == "in_proj" and any(map(is_attention, keys[:-2]))):
        return _query_key_value(rule, label, keys, shape, shapes)
    if label == "query_key_value":
        doubt = "query, key and value may lie side by side (blocks=3) or take turns from head to head"
        return dataclasses.replace(rule, doubt=doubt)
    return rule


def heads_apart(rule: Rule, keys: list[str], shapes: Shapes) -> Rule:
    """Each head of a projection from (features) to (heads, head size), or back, as a matrix of its own."""
    label, ins, outs = label_of(keys), rule.in_axes, rule.out_axes
    if label in (*QUERIES, *_THREE, *_TWO) and len(outs) == 2:
        head, outs = outs[0], outs[1:]
    elif label == "out" and len(ins) == 2 and "/".join([*keys[:-2], "query", keys[-1]]) in shapes:
        head, ins = ins[0], ins[1:]
    else:
        return rule
    batch, reason = tuple(sorted((*rule.batch_axes, head))), f"{rule.reason}; each head apart"
    return dataclasses.replace(rule, in_axes=ins, out_axes=outs, batch_axes=batch, reason=reason)


def _key_value(rule: Rule, label: str, shape: tuple[int, ...]) -> Rule:
    """Keys are as wide as values but in rare layers, which call this otherwise."""
    if len(rule.out_axes) == 1 and shape[rule.out_axes[0]] % 2 == 0:
        return _blocks(rule, 2, f"'{label}': key and value side by side")
    doubt = f"the shares of key and value in '{label}' cannot be told (blocks=2 states equal ones, side by side)"
    return dataclasses.replace(rule, doubt=doubt)


def _query_key_value(rule: Rule, label: str, keys: list[str], shape: tuple[int, ...], shapes: Shapes) -> Rule:
    """Three equal blocks where the input is a third of the width, or the projection behind takes a third of it.

    A divisible width alone does not tell: 8 heads with 2 keys and 2 values have 12 shares of 8, 2 and 2.
    """
    third, rest = divmod(shape[rule.out_axes[-1]], 3)
    above = keys[:-2] if keys[-1] in ("kernel", "w", "weight") else keys[:-1]
    behind = [shapes.get("/".join([*above, name, *keys[len(above) + 1 :]]), ()) for name in _OUT_PROJECTIONS]
    ins = slice(-1, None) if rule.in_axes > rule.out_axes else slice(len(rule.batch_axes), -1)
    taken = {math.prod(other[ins]) for other in behind if len(other) > 1}
    inputs = math.prod(shape[axis] for axis in rule.in_axes)
    if len(rule.out_axes) == 1 and not rest and (third == inputs or third in taken):
        return _blocks(rule, 3, f"'{label}': query, key and value side by side")
    doubt = f"the shares of query, key and value in '{label}' cannot be told (blocks=3 states equal ones, side by side)"
    return dataclasses.replace(rule, doubt=doubt)


def _cell(rule: Rule, keys: list[str], shapes: Shapes) -> Rule:
    """The gates of NNX's OptimizedLSTMCell (four) and GRUCell (three): as many as dense_h is wider than long."""
    from_input, from_hidden = (
        shapes.get("/".join([*keys[:-2], name, keys[-1]]), ()) for name in ("dense_i", "dense_h")
    )
    if len(from_input) != 2 or len(from_hidden) != 2 or from_input[1] != from_hidden[1]:
        return rule
    gates, rest = divmod(from_hidden[1], from_hidden[0])
    return _blocks(rule, gates, f"recurrent cell of {gates} gates") if gates in (3, 4) and not rest else rule


def _blocks(rule: Rule, blocks: int, reason: str) -> Rule:
    return dataclasses.replace(rule, blocks=blocks, reason=reason)
