"""Trees of optax's MuonDimensionNumbers give the axes that optax uses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

import momentax
from momentax import routing
from momentax.leaves import folding

PARAMS = {
    "attention": {
        "out": {"kernel": jnp.ones((2, 4, 8)), "bias": jnp.ones(8)},
        "query": {"kernel": jnp.ones((8, 2, 4))},
    },
    "blocks": {"kernel": jnp.ones((3, 6, 5))},
    "dense": {"kernel": jnp.ones((6, 4))},
    "torch": {"weight": jnp.ones((4, 3, 2, 2))},
}
NUMBERS = {
    "attention": {"out": {"kernel": Numbers((0, 1), 2), "bias": None}, "query": {"kernel": Numbers(0, (-2, -1))}},
    "blocks": {"kernel": Numbers(reduction_axis=(1,), output_axis=(2,))},
    "dense": {"kernel": Numbers()},
    "torch": {"weight": Numbers((1, 2, 3), 0)},
}
AXES = [  # inputs, outputs, stacks, in flattening order
    None,
    ((0, 1), (2,), ()),
    ((0,), (1, 2), ()),
    ((1,), (2,), (0,)),
    ((0,), (1,), ()),
    ((1, 2, 3), (0,), ()),
]


@pytest.mark.parametrize(
    "given",
    [NUMBERS, routing.muon_dimension_numbers(NUMBERS), routing.muon_dimension_numbers(lambda params: NUMBERS)],
    ids=["tree", "converted", "function"],
)
def test_axes(given):
    rules = routing.resolve("muon", PARAMS, given, certain=True)
    for rule, axes in zip(rules, AXES, strict=True):
        got = None if rule.kind == "vector" else (rule.in_axes, rule.out_axes, rule.batch_axes)
        assert got == axes


def test_the_matrices_are_those_that_optax_orthogonalises():
    """optax's update is the polar factor of the matrices that our axes read, up to its approximation."""
    keys = iter(jax.random.split(jax.random.key(0), 6))
    grads = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), PARAMS)
    only = {name: grads[name] for name in ("blocks", "torch")} | {"query": grads["attention"]["query"]}
    numbers = {name: NUMBERS[name] for name in ("blocks", "torch")} | {"query": NUMBERS["attention"]["query"]}
    coefficients = tuple([(1.875, -1.25, 0.375)] * 12)  # convergent
    tx = optax.contrib.scale_by_muon(coefficients, 12, beta=0.0, nesterov=False, weight_dimension_numbers=numbers)
    updates, _ = jax.jit(lambda grads: tx.update(grads, tx.init(grads)))(only)
    for rule, leaf in zip(routing.resolve("muon", only, numbers), jax.tree.leaves(updates), strict=True):
        matrices = folding(leaf.shape, (rule.batch_axes, rule.in_axes, rule.out_axes))[0](leaf)
        singular = np.linalg.svd(np.asarray(matrices), compute_uv=False)
        np.testing.assert_allclose(singular, 1, atol=1e-3)


def test_a_prefix_speaks_for_all_below_it():
    params = {"a": {"x": jnp.ones((2, 3)), "y": jnp.ones((4, 5))}, "ab": jnp.ones((2, 3))}
    rules = routing.resolve("muon", params, {"a": Numbers(1, 0), "ab": None})
    assert [(rule.kind, rule.out_axes) for rule in rules] == [("matrix", (0,)), ("matrix", (0,)), ("vector", ())]
    assert routing.resolve("muon", params, Numbers(1, 0))[2].out_axes == (0,)


def test_a_part_of_the_tree_finds_its_numbers():
    masked = optax.masked(
        momentax.scale_to_average_norm(routing=NUMBERS), jax.tree.map(lambda leaf: leaf.ndim == 3, PARAMS)
    )
    masked.init(PARAMS)


def test_what_is_not_said_is_refused():
    with pytest.raises(ValueError, match=r"no dimension numbers for leaf 'dense/kernel' \(6, 4\)"):
        routing.resolve("muon", PARAMS, {name: NUMBERS[name] for name in NUMBERS if name != "dense"})
    with pytest.raises(ValueError, match=r"leaf 'bias' \(3,\) is no matrix.*give None"):
        routing.resolve("muon", {"bias": jnp.ones(3)}, {"bias": Numbers()})
    with pytest.raises(ValueError, match="'kernel'.*name every axis once"):
        routing.resolve("muon", {"kernel": jnp.ones((3, 4))}, {"kernel": Numbers(0, 0)})
    with pytest.raises(TypeError, match="leaf 'b'.*must be a MuonDimensionNumbers or None; got 'adam'"):
        routing.resolve("muon", {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}, {"a": Numbers(), "b": "adam"})
    with pytest.raises(TypeError, match="muon_dimension_numbers: give a tree"):
        routing.muon_dimension_numbers({"kernel": 1})


def test_functions_of_optax_are_told_from_ours():
    with pytest.raises(TypeError, match="goes through momentax.routing.muon_dimension_numbers"):
        routing.resolve("muon", PARAMS, lambda params: NUMBERS)
