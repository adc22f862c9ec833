"""`explain` on whole models: every leaf is right, or refused with the remedy."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from momentax import routing


def table(params, **options):
    """({path: rule and axes}, paths that are doubtful, the last line)."""
    explanation = routing.explain(params, **options)
    rules = {path: f"{rule} {axes}".strip() for path, _, rule, axes, _ in explanation.rows}
    return rules, set(explanation.doubtful), str(explanation).splitlines()[-1]


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False, name="attention")(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(12, name="up")(nn.RMSNorm()(x)))
        return x + nn.Dense(8, use_bias=False, name="down")(y), None


class LinenGPT(nn.Module):
    axis: int

    @nn.compact
    def __call__(self, tokens):
        positions = self.param("position", nn.initializers.normal(), (5, 8))
        x = nn.Embed(16, 8)(tokens) + positions[None]
        layers = nn.scan(LinenBlock, variable_axes={"params": self.axis}, split_rngs={"params": True}, length=3)
        x, _ = layers(name="blocks")(x, None)
        return nn.Dense(16, use_bias=False, name="lm_head")(x)


def linen_gpt(axis):
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    return jax.eval_shape(LinenGPT(axis).init, jax.random.key(0), tokens)["params"]


BLOCK = {  # kind and axes of one layer: inputs, outputs
    "LayerNorm_0/bias": "vector",
    "LayerNorm_0/scale": "vector",
    "RMSNorm_0/scale": "vector",
    "attention/key/kernel": ((0,), (1, 2)),
    "attention/out/kernel": ((0, 1), (2,)),
    "attention/query/kernel": ((0,), (1, 2)),
    "attention/value/kernel": ((0,), (1, 2)),
    "down/kernel": ((0,), (1,)),
    "up/bias": "vector",
    "up/kernel": ((0,), (1,)),
}


def stacked(block, axis):
    """What a table says of a block whose layers are stacked along `axis`, negative from the end."""
    said = {}
    for path, axes in block.items():
        if axes == "vector":
            said[path] = f"vector batch ({0 if axis == 0 else 1})"
            continue
        ins, outs = axes
        front = axis % (len(ins) + len(outs) + 1)
        ins, outs = (", ".join(str(a + (a >= front)) for a in group) for group in (ins, outs))
        said[path] = f"matrix in ({ins}) out ({outs}) batch ({front})"
    return said


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scanned_linen_transformer(axis):
    params = linen_gpt(axis)
    rules, doubtful, last = table(params, routing=routing.flax(stacked="^blocks/", axis=axis))
    assert last == "head: lm_head/kernel"
    assert not doubtful
    assert rules.pop("lm_head/kernel") == "head in (0) out (1)"
    assert rules.pop("Embed_0/embedding") == "embedding in (0) out (1)"
    assert rules.pop("position") == "embedding in (0) out (1)"
    assert rules == {f"blocks/{path}": said for path, said in stacked(BLOCK, axis).items()}


def test_scanned_linen_transformer_without_a_statement_is_right_or_refused():
    rules, doubtful, _ = table(linen_gpt(0))
    assert not doubtful
    right = {f"blocks/{path}": said for path, said in stacked(BLOCK, 0).items()}
    refused = {path for path, said in rules.items() if said == "refused"}
    assert refused == {"blocks/down/kernel"}  # nothing beside it tells layers from inputs
    for path in right.keys() - refused:
        assert rules[path] == ("vector" if right[path].startswith("vector") else right[path])


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, use_bias=False, decode=False, rngs=rngs)
        self.up = nnx.Linear(8, 12, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(12, 8, use_bias=False, rngs=rngs)


class NNXGPT(nnx.Module):
    def __init__(self, rngs, axis):
        self.embed = nnx.Embed(16, 8, rngs=rngs)
        self.pos = nnx.Param(jnp.zeros((1, 5, 8)))
        keys = nnx.split_rngs(splits=3)
        self.blocks = keys(nnx.vmap(NNXBlock, in_axes=(0,), out_axes=axis))(rngs)
        self.head = nnx.Linear(8, 16, use_bias=False, rngs=rngs)


NNX_BLOCK = {path: axes for path, axes in BLOCK.items() if "Norm" not in path and path != "up/bias"}


@pytest.mark.parametrize("axis", [0, 1])
def test_nnx_transformer_with_stacked_layers(axis):
    state = nnx.state(nnx.eval_shape(lambda: NNXGPT(nnx.Rngs(0), axis)), nnx.Param)
    rules, doubtful, last = table(state, routing=routing.flax(stacked="^blocks/", axis=axis))
    assert (doubtful, last) == (set(), "head: head/kernel")
    assert rules.pop("head/kernel") == "head in (0) out (1)"
    assert rules.pop("embed/embedding") == "embedding in (0) out (1)"
    assert rules.pop("pos") == "embedding in (0, 1) out (2)"
    expected = {"norm/bias": "vector", "norm/scale": "vector"} | NNX_BLOCK
    assert rules == {f"blocks/{path}": said for path, said in stacked(expected, axis).items()}


class ConvNet(nn.Module):
    """Separable convolutions behind a first one, as in MobileNet."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=False, name="stem_conv")(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False, name="depthwise_conv")(x)
        x = nn.Conv(16, (1, 1), name="pointwise_conv")(x)
        return nn.Dense(10, name="classifier")(x.mean((1, 2)))


def test_convnet_with_depthwise_convolutions():
    image = jax.ShapeDtypeStruct((1, 6, 6, 3), jnp.float32)
    params = jax.eval_shape(ConvNet().init, jax.random.key(0), image)["params"]
    rules, doubtful, last = table(params)
    convolution = "matrix in (0, 1, 2) out (3)"
    assert rules == {
        "BatchNorm_0/bias": "vector",
        "BatchNorm_0/scale": "vector",
        "classifier/bias": "vector",
        "classifier/kernel": "head in (0) out (1)",
        "depthwise_conv/kernel": convolution,
        "pointwise_conv/bias": "vector",
        "pointwise_conv/kernel": convolution,
        "stem_conv/kernel": convolution,
    }
    assert (doubtful, last) == ({"depthwise_conv/kernel"}, "head: classifier/kernel")
    with pytest.raises(ValueError, match=r"muon: leaf 'depthwise_conv/kernel'.*single input channel.*vector\(\)"):
        routing.resolve("muon", params, certain=True)
    assert len(routing.resolve("adamp", params)) == len(rules)  # needs axes alone
    routing.resolve("muon", params, {"depthwise_conv/*": routing.vector()}, certain=True)


class Expert(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, use_bias=False, name="down_proj")(nn.gelu(nn.Dense(12, name="up_proj")(x)))


class Mixture(nn.Module):
    @nn.compact
    def __call__(self, x):
        gates = nn.softmax(nn.Dense(4, use_bias=False, name="router")(x))
        copies = nn.vmap(
            Expert, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, out_axes=-1, axis_size=4
        )
        y = (copies(name="experts")(x) * gates[..., None, :]).sum(-1)
        wi, wo = (self.param(name, nn.initializers.normal(), shape) for name, shape in RAW.items())
        return y + jnp.einsum("...d,edf,efd->...d", x, wi, wo)


RAW = {"wi": (4, 6, 12), "wo": (4, 12, 6)}


class MoE(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(16, 6, name="embed")(tokens)
        return nn.Dense(16, name="logits")(Mixture(name="moe")(x))


def test_mixture_of_experts():
    params = jax.eval_shape(MoE().init, jax.random.key(0), jax.ShapeDtypeStruct((2, 5), jnp.int32))["params"]
    rules, doubtful, last = table(params)
    experts = "matrix in (1) out (2) batch (0)"
    assert rules == {
        "embed/embedding": "embedding in (0) out (1)",
        "logits/bias": "vector",
        "logits/kernel": "head in (0) out (1)",
        "moe/experts/down_proj/kernel": experts,
        "moe/experts/up_proj/bias": "vector",
        "moe/experts/up_proj/kernel": experts,
        "moe/router/kernel": "matrix in (0) out (1)",
        "moe/wi": experts,
        "moe/wo": experts,
    }
    assert (doubtful, last) == (set(), "head: logits/kernel")
    layers = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), params["moe"])
    assert table({"moe": layers})[0]["moe/wi"] == "refused"  # layers or experts come first?
    inside, _, _ = table({"moe": layers}, routing=routing.flax(stacked="moe"))
    assert inside["moe/wi"] == "matrix in (2) out (3) batch (0, 1)"
    assert inside["moe/router/kernel"] == "matrix in (1) out (2) batch (0)"


def test_equinox_mlp():
    model = eqx.filter_eval_shape(lambda: eqx.nn.MLP(4, 10, 8, 2, key=jax.random.key(0)))
    params = eqx.filter(model, lambda leaf: hasattr(leaf, "shape"))
    rules, doubtful, last = table(params, routing=routing.equinox(), head="layers/2/*")
    assert rules == {
        "layers/0/bias": "vector",
        "layers/0/weight": "matrix in (1) out (0)",
        "layers/1/bias": "vector",
        "layers/1/weight": "matrix in (1) out (0)",
        "layers/2/bias": "vector",
        "layers/2/weight": "head in (1) out (0)",
    }
    assert (doubtful, last) == (set(), "head: layers/2/weight")
    assert "none recognised" in table(params, routing=routing.equinox())[2]
    by_flax, _, _ = table(params)
    assert {path for path, said in by_flax.items() if said == "refused"} == {p for p in rules if p.endswith("weight")}
