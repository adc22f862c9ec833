"""The conventions of Equinox, layer by layer: right, doubtful or refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax import routing

KEY = jax.random.key(0)


def params_of(make, name="thing"):
    """The filtered parameters of a layer, under a name."""
    made = eqx.filter_eval_shape(make)
    return {name: eqx.filter(made, lambda leaf: hasattr(leaf, "shape"))}


def rules(params, rule_set=None):
    explanation = routing.explain(params, rule_set or routing.equinox())
    return {
        path: f"{rule} {axes}".strip() + (" ?" if path in explanation.doubtful else "")
        for path, _, rule, axes, _ in explanation.rows
    }


LINEAR = "matrix in (1) out (0)"
LAYERS = {
    "Linear": (lambda: eqx.nn.Linear(4, 6, key=KEY), {"weight": LINEAR, "bias": "vector"}),
    "Linear without bias": (lambda: eqx.nn.Linear(4, 6, use_bias=False, key=KEY), {"weight": f"{LINEAR} ?"}),
    "Embedding": (lambda: eqx.nn.Embedding(4, 6, key=KEY), {"weight": f"{LINEAR} ?"}),
    "LayerNorm": (lambda: eqx.nn.LayerNorm((3, 4)), {"weight": "vector", "bias": "vector"}),
    "Conv2d": (
        lambda: eqx.nn.Conv2d(4, 6, 3, key=KEY),
        {"weight": "matrix in (1, 2, 3) out (0)", "bias": "vector"},
    ),
    "depthwise": (
        lambda: eqx.nn.Conv2d(4, 4, 3, groups=4, key=KEY),
        {"weight": "matrix in (1, 2, 3) out (0) ?", "bias": "vector"},
    ),
    "Conv1d without bias": (lambda: eqx.nn.Conv1d(4, 6, 3, use_bias=False, key=KEY), {"weight": "refused"}),
    "ConvTranspose1d": (
        lambda: eqx.nn.ConvTranspose1d(4, 6, 3, key=KEY),
        {"weight": "matrix in (1, 2) out (0)", "bias": "vector"},
    ),
    "GRUCell": (
        lambda: eqx.nn.GRUCell(4, 6, key=KEY),
        {"weight_ih": f"{LINEAR} blocks 3", "weight_hh": f"{LINEAR} blocks 3", "bias": "vector", "bias_n": "vector"},
    ),
    "LSTMCell": (
        lambda: eqx.nn.LSTMCell(4, 6, key=KEY),
        {"weight_ih": f"{LINEAR} blocks 4", "weight_hh": f"{LINEAR} blocks 4", "bias": "vector"},
    ),
    "attention": (
        lambda: eqx.nn.MultiheadAttention(2, 8, key=KEY),
        {f"{name}_proj/weight": LINEAR for name in ("query", "key", "value", "output")},
    ),
    "WeightNorm": (
        lambda: eqx.nn.WeightNorm(eqx.nn.Linear(4, 6, key=KEY)),
        {"layer/weight": LINEAR, "layer/bias": "vector", "g": "vector"},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    make, expected = LAYERS[name]
    assert rules(params_of(make)) == {f"thing/{path}": said for path, said in expected.items()}


def test_names_tell_what_shapes_do_not():
    embedding, linear = LAYERS["Embedding"][0], LAYERS["Linear without bias"][0]
    for name in ("token_embedding", "wte", "pos_emb", "codebook"):
        assert rules(params_of(embedding, name)) == {f"{name}/weight": "embedding in (0) out (1)"}
    for name in ("up", "q_proj", "fc1", "embed_proj"):
        assert rules(params_of(linear, name)) == {f"{name}/weight": LINEAR}
    assert rules(params_of(linear, "lm_head")) == {"lm_head/weight": f"head {LINEAR.removeprefix('matrix ')}"}
    convolution = LAYERS["Conv1d without bias"][0]
    assert rules(params_of(convolution, "conv")) == {"conv/weight": "matrix in (1, 2) out (0)"}
    fused = rules(params_of(lambda: eqx.nn.Linear(8, 24, key=KEY), "qkv"))
    assert fused["qkv/weight"] == f"{LINEAR} blocks 3"


def test_a_linear_with_bias_is_no_embedding_whatever_its_name():
    assert rules(params_of(LAYERS["Linear"][0], "patch_embedding"))["patch_embedding/weight"] == LINEAR


def test_what_stands_behind_another_layer_is_no_embedding():
    got = rules(params_of(lambda: eqx.nn.MLP(4, 2, 8, 1, use_bias=False, use_final_bias=False, key=KEY)))
    assert got == {"thing/layers/0/weight": f"{LINEAR} ?", "thing/layers/1/weight": LINEAR}


def test_leaves_of_ones_own_are_refused_unless_named_like_a_table():
    leaf = jnp.ones((3, 4))
    assert rules({"w": leaf, "pos_embed": leaf, "b": leaf[0], "scale": leaf}) == {
        "w": "refused",
        "pos_embed": "embedding in (0) out (1)",
        "b": "vector",
        "scale": "vector",
    }


def test_stacks_made_by_filter_vmap():
    make = eqx.filter_vmap(lambda key: eqx.nn.MLP(4, 4, 8, 1, key=key))
    params = {"blocks": eqx.filter(make(jax.random.split(KEY, 3)), eqx.is_inexact_array)}
    stated = rules(params, routing.equinox(stacked="blocks"))
    assert stated["blocks/layers/0/weight"] == "matrix in (2) out (1) batch (0)"
    assert stated["blocks/layers/0/bias"] == "vector batch (0)"
    by_bias = rules(params)
    assert by_bias["blocks/layers/0/weight"] == "matrix in (2) out (1) batch (0)"


def test_a_dict_hands_the_rest_to_equinox():
    params = params_of(LAYERS["Linear without bias"][0]) | params_of(LAYERS["Linear"][0], "other")
    stated = {"thing/weight": routing.matrix((1,), (0,)), "*": routing.equinox()}
    got = routing.resolve("muon", params, stated, certain=True)
    assert [rule.out_axes for rule in got] == [(0,), (), (0,)]
    with pytest.raises(ValueError, match=r"muon: leaf 'thing/weight' \(6, 4\).*without bias and an Embedding"):
        routing.resolve("muon", params, routing.equinox(), certain=True)


def test_axes_are_those_of_the_layers():
    """The matrix (in, out) that a rule reads is the one that the layer applies."""
    layer = eqx.nn.Linear(4, 6, key=KEY)
    (rule, _) = routing.resolve("f", eqx.filter(layer, eqx.is_inexact_array), routing.equinox())
    x = jnp.arange(4.0)
    y = jnp.tensordot(x, layer.weight, axes=((0,), rule.in_axes)) + layer.bias
    np.testing.assert_allclose(y, layer(x), rtol=1e-6)
