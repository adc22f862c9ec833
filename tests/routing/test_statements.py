"""What users state on top of names: heads, blocks, split heads, and leaves that matrix methods doubt."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from momentax import routing


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def kernels(**shapes):
    return {name: {"kernel": leaf(*shape)} for name, shape in shapes.items()}


def rules(params, rule_set=None, **options):
    explanation = routing.explain(params, rule_set, **options)
    return {
        path: f"{rule} {axes}".strip() + (" ?" if path in explanation.doubtful else "")
        for path, _, rule, axes, _ in explanation.rows
    }


def last_line(params, *arguments):
    return str(routing.explain(params, *arguments)).splitlines()[-1]


MATRIX = "matrix in (0) out (1)"
HEAD = "head in (0) out (1)"

# Output heads


@pytest.mark.parametrize("name", ["lm_head", "LMHead_0", "head", "Classifier_0", "logits_dense", "unembed", "readout"])
def test_heads_are_recognised_by_name(name):
    assert rules({"gpt": kernels(**{name: (8, 16)})}) == {f"gpt/{name}/kernel": HEAD}
    assert rules({name: leaf(8, 16)}) == {name: HEAD}  # a parameter of one's own


@pytest.mark.parametrize("name", ["heads", "head_norm", "header", "attention_head", "up"])
def test_other_names_are_no_heads(name):
    assert rules(kernels(**{name: (8, 16)})) == {f"{name}/kernel": MATRIX}


def test_a_head_of_attention_is_no_output_head():
    params = {"Head_0": kernels(query=(8, 4), key=(8, 4), value=(8, 4)), "head": kernels(Dense_0=(8, 4))}
    got = rules(params)
    assert got.pop("head/Dense_0/kernel") == HEAD
    assert set(got.values()) == {MATRIX}


def test_what_is_no_matrix_is_no_head():
    params = {"lm_head": {"kernel": leaf(8, 4), "bias": leaf(4)}, "logits": {"embedding": leaf(8, 4)}}
    assert rules(params) == {
        "lm_head/kernel": HEAD,
        "lm_head/bias": "vector",
        "logits/embedding": "embedding in (0) out (1)",
    }


def test_heads_are_stated_by_pattern_or_rule():
    params = kernels(final=(8, 4), inner=(8, 8))
    expected = {"final/kernel": HEAD, "inner/kernel": MATRIX}
    assert rules(params, head="final/*") == expected
    assert rules(params, routing.flax(head="final/*")) == expected
    assert rules(params, {"final/*": routing.head((0,), (1,))}) == expected
    assert rules(params, {"*": routing.matrix((0,), (1,))}, head="final/*") == expected
    assert [rule.kind for rule in routing.resolve("muon", params, head="final/*")] == ["head", "matrix"]
    assert last_line(params, None, "final/*") == "head: final/kernel"
    assert last_line(params) == "head: none recognised; head=<path pattern> states one"


def test_a_head_that_is_not_there_is_an_error():
    params = kernels(final=(8, 4))
    for pattern in ("final", "lm_head/*"):
        with pytest.raises(ValueError, match=f"muon: head='{pattern.replace('*', '[*]')}' matches no matrix"):
            routing.resolve("muon", params, head=pattern)
    with pytest.raises(ValueError, match="explain: head='final' matches no matrix"):
        routing.explain(params, head="final")
    with pytest.raises(TypeError, match="muon: `head` must be a path pattern"):
        routing.resolve("muon", params, head=("final/*",))
    assert routing.resolve("muon", {}, head="lm_head/*") == []  # optax shows trees without leaves


def test_masks_and_axes_treat_heads_as_matrices():
    params = {"lm_head": {"kernel": jnp.ones((8, 4))}, "embed": {"embedding": jnp.ones((4, 8))}}
    assert routing.only_matrices(params) == {"lm_head": {"kernel": True}, "embed": {"embedding": False}}
    assert routing.head((0,), (1,)).channel_axes == routing.matrix((0,), (1,)).channel_axes


# Leaves that may be no matrix


@pytest.mark.parametrize("name", ["pos_embedding", "wte", "wpe", "cls_token", "position", "codebook", "vocab_table"])
def test_leaves_named_like_tables_are_embeddings(name):
    assert rules({name: leaf(16, 8)}) == {name: "embedding in (0) out (1)"}
    assert rules({name: leaf(1, 16, 8)}) == {name: "embedding in (0, 1) out (2)"}
    assert rules({name: leaf(4, 16, 8)}) == {name: "refused"}  # a grid, or a stack of tables


@pytest.mark.parametrize("name", ["w", "W1", "wq", "kernel_0", "up_proj", "lora_a", "token_mixing", "A"])
def test_leaves_named_like_layers_are_matrices(name):
    assert rules({name: leaf(16, 8)}) == {name: MATRIX}


def test_leaves_without_a_name_are_matrices():
    assert rules(leaf(16, 8)) == {"": MATRIX}
    assert rules([leaf(16, 8)]) == {"0": MATRIX}
    assert rules({"tok_embed": [leaf(16, 8)]}) == {"tok_embed/0": "embedding in (0) out (1)"}


@pytest.mark.parametrize("name", ["table", "latents", "memory", "prototypes"])
def test_leaves_with_a_name_of_their_own_are_doubtful(name):
    params = {name: leaf(16, 8)}
    assert rules(params) == {name: f"{MATRIX} ?"}
    assert [rule.out_axes for rule in routing.resolve("adamp", params)] == [(1,)]
    with pytest.raises(
        ValueError, match=rf"muon: leaf '{name}' \(16, 8\).*routing=\{{'{name}': .*matrix\(in_axes=\(0,"
    ):
        routing.resolve("muon", params, certain=True)
    for stated in (routing.matrix((0,), (1,)), routing.vector(), routing.embedding()):
        assert routing.resolve("muon", params, {name: stated}, certain=True)[0].kind == stated.kind
    assert routing.resolve("muon", params, head=name, certain=True)[0].kind == "head"


def test_the_advice_of_explain_is_that_of_the_error():
    reason = routing.explain({"table": leaf(4, 3)}).rows[0][4]
    assert "routing={'table': momentax.routing.matrix(in_axes=(0,), out_axes=(1,))}" in reason
    reason = routing.explain({"table": leaf(4, 3)}, routing.flax()).rows[0][4]
    assert "'*': <the rule set you give now>" in reason
    assert "2 leaves, 1 refused, 1 doubtful" in str(routing.explain({"table": leaf(4, 3), "x": leaf(2, 3, 4)}))


def test_convolutions_on_one_channel():
    conv1, conv3 = "matrix in (0, 1, 2) out (3) ?", "matrix in (0, 1, 2) out (3)"
    assert rules(kernels(conv1=(3, 3, 1, 8), conv3=(3, 3, 3, 8))) == {"conv1/kernel": conv1, "conv3/kernel": conv3}
    stacked = {"conv": {"kernel": leaf(4, 3, 3, 1, 8), "bias": leaf(4, 8)}}
    assert rules(stacked)["conv/kernel"] == "matrix in (1, 2, 3) out (4) batch (0) ?"
    assert (
        rules(kernels(conv=(3, 1, 8)), routing.flax(stacked="conv"))["conv/kernel"] == "matrix in (1) out (2) batch (0)"
    )


# Several matrices in one leaf


@pytest.mark.parametrize(
    "name, shape, said",
    [
        ("qkv", (8, 24), f"{MATRIX} blocks 3"),
        ("c_attn", (8, 24), f"{MATRIX} blocks 3"),
        ("in_proj", (8, 24), f"{MATRIX} blocks 3"),
        ("kv", (8, 12), f"{MATRIX} blocks 2"),
        ("qkv_proj", (8, 12), f"{MATRIX} ?"),  # 2 heads of size 4, 1 key and 1 value of size 2: 3 divides, wrongly
        ("query_key_value", (8, 24), f"{MATRIX} ?"),  # in turns from head to head, in some models
        ("qkv", (8, 3, 2, 4), "matrix in (0) out (2, 3) batch (1)"),
        ("qkv", (8, 2, 3, 4), "matrix in (0) out (1, 3) batch (2)"),
        ("kv", (8, 2, 4), "matrix in (0) out (2) batch (1)"),
        ("qkv", (3, 8, 24), "refused"),  # three layers, or query, key and value
    ],
)
def test_fused_projections(name, shape, said):
    assert rules({"attention": kernels(**{name: shape})}) == {f"attention/{name}/kernel": said}


def test_a_projection_behind_tells_the_width_of_a_fused_one():
    assert (
        rules({"attention": kernels(to_qkv=(6, 24), to_out=(8, 6))})["attention/to_qkv/kernel"] == f"{MATRIX} blocks 3"
    )


def test_an_input_projection_outside_attention_is_one_matrix():
    assert rules({"mamba": kernels(in_proj=(8, 24))}) == {"mamba/in_proj/kernel": MATRIX}


def test_a_fused_projection_stored_as_out_in_shows_by_its_bias():
    params = {"c_attn": {"kernel": leaf(24, 8), "bias": leaf(24)}}
    assert rules(params)["c_attn/kernel"] == "matrix in (1) out (0) blocks 3"


@pytest.mark.parametrize("heads", [2, 3])
def test_fused_general_layer_of_linen(heads):
    layer = nn.DenseGeneral((3, heads, 4), name="qkv")
    params = {"qkv": jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 8)))["params"]}
    apart = "matrix in (0) out (2, 3) batch (1)"
    assert rules(params)["qkv/kernel"] == (apart if heads == 2 else "matrix in (0) out (1, 2, 3) ?")
    by_head = rules(params, routing.flax(split_heads=True))["qkv/kernel"]
    assert heads == 3 or by_head == "matrix in (0) out (3) batch (1, 2)"


def test_recurrent_cells_of_nnx():
    def said(cell):
        state = nnx.state(nnx.eval_shape(lambda: cell(4, 8, rngs=nnx.Rngs(0))), nnx.Param)
        got = rules({"cell": state})
        return {got["cell/dense_i/kernel"], got["cell/dense_h/kernel"]}

    assert said(nnx.OptimizedLSTMCell) == {f"{MATRIX} blocks 4"}
    assert said(nnx.GRUCell) == {f"{MATRIX} blocks 3"}
    assert said(nnx.SimpleCell) == {MATRIX}
    assert rules(kernels(dense_h=(8, 32))) == {"dense_h/kernel": MATRIX}  # no dense_i beside it


def test_blocks_are_stated_and_checked():
    params = kernels(mixer=(8, 12))
    assert rules(params, {"mixer/*": routing.matrix((0,), (1,), blocks=4)})["mixer/kernel"] == f"{MATRIX} blocks 4"
    for blocks in (5, 0, 1.5):
        with pytest.raises(ValueError, match=f"leaf 'mixer/kernel'.*cut into blocks={blocks}.*divides that axis"):
            routing.resolve("muon", params, {"mixer/*": routing.matrix((0,), (1,), blocks=blocks)})


@pytest.mark.parametrize("use_bias", [True, False])
def test_split_heads(use_bias):
    layer = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=use_bias)
    params = {"attention": jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 3, 8)))["params"]}
    got = rules(params, routing.flax(split_heads=True))
    for name in ("query", "key", "value"):
        assert got[f"attention/{name}/kernel"] == "matrix in (0) out (2) batch (1)"
    assert got["attention/out/kernel"] == "matrix in (1) out (2) batch (0)"
    stack = jax.tree.map(lambda x: leaf(*x.shape[:1], 5, *x.shape[1:]), params)
    got = rules(stack, routing.flax("attention", 1, split_heads=True))
    assert got["attention/query/kernel"] == "matrix in (0) out (3) batch (1, 2)"
    assert got["attention/out/kernel"] == "matrix in (2) out (3) batch (0, 1)"


def test_stacks_of_experts_want_a_name_that_says_so():
    assert rules({"experts": kernels(up=(4, 6, 12))}) == {"experts/up/kernel": "matrix in (1) out (2) batch (0)"}
    assert rules({"moe": kernels(mixer=(4, 6, 12))}) == {"moe/mixer/kernel": "refused"}
    assert rules({"experts": kernels(query=(4, 6, 12))}) == {"experts/query/kernel": "refused"}
    square = {"experts": {"up": {"kernel": leaf(4, 4, 7), "bias": leaf(4, 7)}}}  # its bias alone fits two readings
    assert rules(square)["experts/up/kernel"] == "matrix in (1) out (2) batch (0)"


# Patterns


def test_patterns_that_match_nothing_are_shown_by_explain_and_bother_nobody_else():
    params = kernels(up=(8, 4))
    stated = {"up/*": routing.matrix((0,), (1,)), "down/*": routing.matrix((0,), (1,))}
    explanation = routing.explain(params, stated)
    assert explanation.unmatched == ("down/*",)
    assert "no leaf matches 'down/*'" in str(explanation)
    assert len(routing.resolve("muon", params, stated)) == 1  # a part of the model, say, inside optax.masked


def test_a_dict_and_a_function_may_hand_leaves_to_a_rule_set():
    params = kernels(up=(4, 8, 6), conv=(3, 3, 3, 8))
    stack = routing.flax(stacked="up")
    expected = {"up/kernel": "matrix in (1) out (2) batch (0)", "conv/kernel": "matrix in (0, 1, 2) out (3)"}
    assert rules(params, {"up/*": stack}) == expected
    assert rules(params, lambda path, leaf: stack if path.startswith("up") else None) == expected


@pytest.mark.parametrize("maker", [routing.flax, routing.equinox])
def test_a_rule_set_must_be_made(maker):
    with pytest.raises(TypeError, match=rf"write momentax.routing.{maker.__name__}\(\)"):
        routing.resolve("muon", kernels(up=(8, 4)), maker)
