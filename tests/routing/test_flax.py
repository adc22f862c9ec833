"""The default rules on real Linen and NNX models: every leaf right, or refused with the remedy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import momentax
from momentax import routing


def linen(module, *inputs):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]


def rules(params, **options):
    """{path: rule}, refusing nothing."""
    table = routing.explain(params, **options)
    resolved = {}
    for path, _, rule, axes, _ in table.rows:
        resolved[path] = "refused" if rule == "refused" else f"{rule} {axes}".strip()
    return resolved


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.MultiHeadDotProductAttention(num_heads=2, name="attention", normalize_qk=True)(nn.LayerNorm()(x))
        x = x + y
        y = nn.Dense(12, name="up")(nn.RMSNorm()(x))
        return x + nn.Dense(8, use_bias=False, name="down")(nn.gelu(y)), None


class LinenGPT(nn.Module):
    scan: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(16, 8)(tokens)
        if self.scan:
            layers = nn.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = layers(name="blocks")(x, None)
        else:
            x, _ = LinenBlock(name="block")(x)
        return nn.Dense(16, use_bias=False, name="lm_head")(x)


TOKENS = jnp.zeros((2, 5), jnp.int32)
BLOCK = {
    "LayerNorm_0/bias": "vector",
    "LayerNorm_0/scale": "vector",
    "RMSNorm_0/scale": "vector",
    "attention/key/bias": "vector",
    "attention/key/kernel": "matrix in (0) out (1, 2)",
    "attention/key_ln/scale": "vector",
    "attention/out/bias": "vector",
    "attention/out/kernel": "matrix in (0, 1) out (2)",
    "attention/query/bias": "vector",
    "attention/query/kernel": "matrix in (0) out (1, 2)",
    "attention/query_ln/scale": "vector",
    "attention/value/bias": "vector",
    "attention/value/kernel": "matrix in (0) out (1, 2)",
    "down/kernel": "matrix in (0) out (1)",
    "up/bias": "vector",
    "up/kernel": "matrix in (0) out (1)",
}
STACKED = {"": "", "vector": "vector batch (0)"} | {
    "matrix in (0) out (1, 2)": "matrix in (1) out (2, 3) batch (0)",
    "matrix in (0, 1) out (2)": "matrix in (1, 2) out (3) batch (0)",
    "matrix in (0) out (1)": "matrix in (1) out (2) batch (0)",
}


def test_linen_transformer():
    got = rules(linen(LinenGPT(), TOKENS))
    assert got.pop("Embed_0/embedding") == "embedding in (0) out (1)"
    assert got.pop("lm_head/kernel") == "head in (0) out (1)"
    assert got == {f"block/{path}": rule for path, rule in BLOCK.items()}


def test_scanned_linen_transformer_needs_no_statement_where_names_or_biases_tell():
    got = rules(linen(LinenGPT(scan=True), TOKENS))
    assert got["blocks/attention/query/kernel"] == STACKED[BLOCK["attention/query/kernel"]]
    assert got["blocks/attention/out/kernel"] == STACKED[BLOCK["attention/out/kernel"]]
    assert got["blocks/up/kernel"] == STACKED[BLOCK["up/kernel"]]
    assert got["blocks/up/bias"] == "vector"
    assert got["blocks/down/kernel"] == "refused"  # it has no bias


def test_scanned_linen_transformer_stated_as_a_stack():
    got = rules(linen(LinenGPT(scan=True), TOKENS), routing=routing.flax(stacked="^blocks/"))
    inside = {path.removeprefix("blocks/"): rule for path, rule in got.items() if path.startswith("blocks/")}
    assert inside == {path: STACKED[rule] for path, rule in BLOCK.items()}
    assert got["lm_head/kernel"] == "head in (0) out (1)"


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 12, rngs=rngs)
        self.conv = nnx.Conv(8, 8, (3,), rngs=rngs)


def test_nnx_modules_as_states_and_as_pure_trees_agree():
    model = nnx.eval_shape(lambda: NNXBlock(nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    got = rules(state)
    assert got == rules(nnx.to_pure_dict(state))
    assert got["attention/query/kernel"] == "matrix in (0) out (1, 2)"
    assert got["attention/value/kernel"] == "matrix in (0) out (1, 2)"  # a submodule called value
    assert got["attention/out/kernel"] == "matrix in (0, 1) out (2)"
    assert got["attention/value/bias"] == "vector"
    assert got["conv/kernel"] == "matrix in (0, 1) out (2)"
    assert "refused" not in got.values()


def test_nnx_stack_made_by_vmap():
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key):
        return NNXBlock(nnx.Rngs(key))

    model = make(jax.random.split(jax.random.key(0), 3))
    got = rules({"blocks": nnx.to_pure_dict(nnx.state(model, nnx.Param))}, routing=routing.flax(stacked="blocks"))
    assert got["blocks/up/kernel"] == "matrix in (1) out (2) batch (0)"
    assert got["blocks/conv/kernel"] == "matrix in (1, 2) out (3) batch (0)"
    assert got["blocks/attention/out/kernel"] == "matrix in (1, 2) out (3) batch (0)"


LAYERS = {
    "Dense": (lambda: nn.Dense(7), (6,), "matrix in (0) out (1)"),
    "Conv 2-D": (lambda: nn.Conv(8, (3, 3)), (5, 5, 6), "matrix in (0, 1, 2) out (3)"),
    "Conv 1-D": (lambda: nn.Conv(8, (3,), use_bias=False, name="conv1"), (5, 6), "matrix in (0, 1) out (2)"),
    "depthwise": (lambda: nn.Conv(6, (3, 3), feature_group_count=6), (5, 5, 6), "matrix in (0, 1, 2) out (3)"),
    "DenseGeneral": (lambda: nn.DenseGeneral((2, 3), axis=(-2, -1)), (5, 6), "matrix in (0, 1) out (2, 3)"),
    "no bias": (lambda: nn.DenseGeneral((2, 3), axis=(-2, -1), use_bias=False), (5, 6), "refused"),
    "transposed": (lambda: nn.ConvTranspose(8, (3, 3)), (5, 5, 6), "matrix in (0, 1, 2) out (3)"),
    "swapped": (lambda: nn.ConvTranspose(8, (3,), transpose_kernel=True), (5, 6), "matrix in (0, 2) out (1)"),
    "no bias, transposed": (lambda: nn.ConvTranspose(8, (3, 3), use_bias=False), (5, 5, 6), "refused"),
    "ConvLocal": (lambda: nn.ConvLocal(8, (3,)), (5, 6), "matrix in (1) out (2) batch (0)"),
    "Einsum": (lambda: nn.Einsum((2, 3, 4), "bi,ijk->bjk"), (2,), "refused"),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_single_linen_layers(layer):
    make, shape, expected = LAYERS[layer]

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return make()(x)

    params = linen(Model(), jnp.ones((1, *shape)))
    (kernel,) = [rule for path, rule in rules(params).items() if path.endswith("kernel")]
    assert kernel == expected


def test_boxed_parameters():
    init = nn.with_partitioning(nn.initializers.ones, ("a", "b"))
    params = linen(nn.Dense(7, kernel_init=init), jnp.ones((1, 6)))
    assert rules(params) == {"bias": "vector", "kernel": "matrix in (0) out (1)"}


@pytest.mark.parametrize("name", ["out_proj", "dense", "query", "down"])
def test_rank_three_without_a_bias_may_be_a_stack_or_a_general_layer_and_is_refused(name):
    """(heads, head size, features) of a LinearGeneral and (layers, in, out) of a scanned Linear look the same."""
    assert rules({"block": {name: {"kernel": jnp.ones((4, 8, 8))}}})[f"block/{name}/kernel"] == "refused"


def test_stacked_plain_layers_called_query_are_not_taken_for_attention():
    names = ("query", "key", "value", "out")
    plain = rules({name: {"kernel": jnp.ones((3, 8, 8))} for name in names})
    assert set(plain.values()) == {"refused"}
    heads = {name: {"kernel": jnp.ones((8, 2, 4) if name != "out" else (2, 4, 8))} for name in names}
    assert rules(heads)["query/kernel"] == "matrix in (0) out (1, 2)"
    assert rules(heads)["out/kernel"] == "matrix in (0, 1) out (2)"


def test_bias_that_fits_two_readings_is_refused():
    params = {"layer": {"kernel": jnp.ones((4, 4, 7)), "bias": jnp.ones((4, 7))}}
    with pytest.raises(ValueError, match=r"adamp.*layer/kernel.*fits outputs of that shape as well as a stack"):
        routing.resolve("adamp", params)


def test_user_rules_win_and_the_rest_falls_to_flax():
    params = {"mixer": {"kernel": jnp.ones((2, 3, 4))}, "dense": {"kernel": jnp.ones((3, 4))}}
    stated = routing.matrix(in_axes=(-2,), out_axes=(-1,), batch_axes=(0,))
    by_pattern = rules(params, routing={"mixer/*": stated})
    by_function = rules(params, routing=lambda path, leaf: stated if "mixer" in path else None)
    assert by_pattern == by_function
    assert by_pattern["mixer/kernel"] == "matrix in (1) out (2) batch (0)"
    assert by_pattern["dense/kernel"] == "matrix in (0) out (1)"


def test_axes_that_do_not_partition_a_leaf_are_refused():
    with pytest.raises(ValueError, match="dense/kernel.*name every axis once"):
        routing.resolve("f", {"dense": {"kernel": jnp.ones((3, 4, 5))}}, {"*": routing.matrix((0,), (1,))})


@pytest.mark.parametrize("wrong", [3, "flax", {"*": "matrix"}])
def test_routing_of_another_kind_is_refused(wrong):
    with pytest.raises(TypeError, match="routing"):
        routing.resolve("f", {"kernel": jnp.ones((3, 4))}, wrong)


def test_torch_like_weight_is_refused_not_misread():
    assert rules({"linear": {"weight": jnp.ones((3, 4))}})["linear/weight"] == "refused"


def test_no_decay_on_vectors_is_the_same_mask_at_init_and_update():
    """nnx.Optimizer shows Params to init and bare arrays to update: the mask must not notice."""

    def train(mask):
        model = NNXBlock(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, momentax.adamp(0.1, weight_decay=0.5, weight_decay_mask=mask), wrt=nnx.Param)
        before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
        return before, nnx.to_pure_dict(nnx.state(model, nnx.Param))

    before, after = train(routing.no_decay_on_vectors)
    np.testing.assert_array_equal(after["norm"]["scale"], before["norm"]["scale"])
    assert not np.allclose(after["up"]["kernel"], before["up"]["kernel"])
    _, static = train(routing.no_decay_on_vectors(before))
    jax.tree.map(np.testing.assert_array_equal, after, static)


def test_tied_and_frozen_leaves():
    params = {"embed": {"embedding": jnp.ones((5, 3))}, "frozen": {"kernel": jnp.ones((2, 3, 4))}}
    labels = {"embed": {"embedding": "train"}, "frozen": {"kernel": "freeze"}}
    tx = optax.partition({"train": momentax.adamp(0.1), "freeze": optax.set_to_zero()}, labels)
    updates, _ = tx.update(params, tx.init(params), params)  # the frozen leaf needs no rule
    assert not jnp.any(updates["frozen"]["kernel"])
