"""What the names of leaves and modules tell."""

import re
from collections.abc import Sequence

from momentax.routing._rules import Shapes

# Case and underscores do not count, nor a number behind: LMHead_0 is lm_head.
HEADS = (
    "classification_head",
    "classifier",
    "classifier_head",
    "cls_head",
    "embed_out",
    "head",
    "lm_head",
    "logits",
    "logits_dense",
    "logits_proj",
    "mlm_head",
    "output_head",
    "prediction_head",
    "readout",
    "to_logits",
    "unembed",
    "unembedding",
    "vocab_head",
    "vocab_proj",
)
_HEADS = frozenset(name.replace("_", "") for name in HEADS)
_VECTOR = re.compile(r"(?i)(^|_)(bias|scale|beta|gamma|gain|offset|negative_slope|mean|var)$")
_TABLE = re.compile(r"(?i)embed|(^|_)(emb|wte|wpe|pos|tok|cls)(_|\d|$)|(^|_)(position|token|vocab|codebook)")
_LAYER = re.compile(
    r"(?i)^w(_.*|\d.*|[a-z]{0,2}\d*)$|kernel|weight|proj|dense|linear|router|lora_[ab]|mix"
    r"|(^|_)(fc|mlp|conv|layers?|hidden|gate|up|down|in|out|qkv|kv|q|k|v|o)(_|\d|$)"
)
_PROJECTION = re.compile(r"(?i)proj|mix|mlp|linear|dense|(^|_)fc\d?(_|$)")
_ATTENTION = re.compile(r"(?i)^(q|k|v|qkv|kv|query|key|value|c_attn)(_proj)?$|^to_(q|k|v|qkv|kv)$|attention|attn")


def named_key(keys: Sequence[str]) -> str:
    """The last key that is no index of a list; nothing where all are."""
    return next((key for key in reversed(keys) if key and not key.isdecimal()), "")


def is_vector(name: str) -> bool:
    """Whether a leaf of any rank is a bias, a scale or a statistic."""
    return _VECTOR.search(name) is not None


def is_table(name: str) -> bool:
    """Whether this is called like one vector a token, position or code, and not like a projection of them."""
    return _TABLE.search(name) is not None and not _PROJECTION.search(name) and not is_head(name)


def is_layer(name: str) -> bool:
    """Whether this is called like what multiplies an input; single letters and no name at all do."""
    return len(name) < 2 or _LAYER.search(name) is not None or is_head(name)


def is_head(name: str) -> bool:
    """Whether this is called like the layer that gives the logits."""
    return plain(name).replace("_", "") in _HEADS


def is_attention(name: str) -> bool:
    """Whether this is called like attention or one of its projections."""
    return _ATTENTION.search(plain(name)) is not None


def head_above(path: str, shapes: Shapes) -> str:
    """The key of the path that is called like an output head, or nothing; a head of attention is none."""
    keys = path.split("/")
    for depth, key in enumerate(keys, 1):
        if is_head(key):
            inside = "/".join(keys[:depth]) + "/"
            modules = {name for other in shapes if other.startswith(inside) for name in other.split("/")[depth:-1]}
            return "" if any(map(is_attention, modules)) else key
    return ""


def plain(name: str) -> str:
    """The name in lower case, without the number that Linen puts behind."""
    return re.sub(r"_\d+$", "", name.lower())
