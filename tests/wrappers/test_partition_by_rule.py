"""Who gets which leaf, and that a part sees the rules of the whole tree."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax

PARAMS = {
    "attention": {"query": {"kernel": jnp.ones((4, 2, 3)), "bias": jnp.ones((2, 3))}},
    "embed": {"embedding": jnp.ones((5, 4))},
    "lm_head": {"kernel": jnp.ones((4, 5))},
    "norm": {"scale": jnp.ones(4)},
}


def times(factor):
    return optax.scale(factor)


def paths_of(tree, value):
    return {path for path, leaf in momentax.paths.named_leaves(tree) if leaf.flat[0] == value}


def test_every_kind_has_its_own():
    tx = momentax.partition_by_rule(
        {"matrix": times(2.0), "head": times(3.0), "embedding": times(5.0), "vector": times(7.0)}
    )
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    updates = jax.tree.map(np.asarray, updates)
    assert paths_of(updates, 2) == {"attention/query/kernel"}
    assert paths_of(updates, 3) == {"lm_head/kernel"}
    assert paths_of(updates, 5) == {"embed/embedding"}
    assert paths_of(updates, 7) == {"attention/query/bias", "norm/scale"}


def test_rest_is_what_is_not_named_and_head_adds_a_pattern():
    tx = momentax.partition_by_rule({"matrix": times(2.0), "rest": times(3.0)}, head="attention/*/kernel")
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert paths_of(jax.tree.map(np.asarray, updates), 2) == set()


def test_a_part_gets_the_rules_that_the_biases_beside_its_leaves_tell():
    seen = {}

    def matrices(routing):
        def init(params):
            for path, leaf in momentax.paths.named_leaves(params):
                seen[path] = routing(path, leaf).out_axes
            return optax.EmptyState()

        return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))

    momentax.partition_by_rule({"matrix": matrices, "rest": optax.identity()}).init(PARAMS)
    assert seen == {"attention/query/kernel": (1, 2)}


def test_a_kind_without_transformation_is_named():
    tx = momentax.partition_by_rule({"matrix": times(2.0), "head": times(1.0), "vector": times(1.0)})
    with pytest.raises(ValueError, match=r"'embed/embedding' \(5, 4\).*'embedding' or 'rest'"):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    "transforms", [{"matrices": times(1.0)}, {"matrix": 3.0}, {"matrix": times(1.0), "rest": optax.adam}]
)
def test_bad_parts_are_refused(transforms):
    with pytest.raises((ValueError, TypeError), match="partition_by_rule"):
        momentax.partition_by_rule(transforms)


@pytest.mark.parametrize(
    "mask",
    [
        jax.tree.map(lambda leaf: leaf.ndim > 1, PARAMS),
        {"attention": True, "embed": False, "lm_head": True, "norm": False},
        momentax.routing.no_decay_on_vectors,
    ],
    ids=["tree", "prefix", "function"],
)
def test_masks_of_the_whole_tree_reach_the_parts(mask):
    decay = momentax.decays.decoupled(1.0, mask)
    tx = momentax.partition_by_rule({"matrix": decay, "rest": decay})
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    whole, _ = decay.update(zeros, decay.init(PARAMS), PARAMS)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), updates, whole))


def test_a_pattern_that_matches_nothing_is_an_error():
    tx = momentax.partition_by_rule({"rest": times(1.0)}, {"lm_heads/*": momentax.routing.vector()})
    with pytest.raises(ValueError, match="'lm_heads/\\*' of routing matches no leaf"):
        tx.init(PARAMS)


def test_leaves_without_entries_go_to_the_rest():
    tx = momentax.muon(0.1)
    params = {"empty": {"kernel": jnp.ones((0, 3))}, "dense": {"kernel": jnp.ones((3, 3))}}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["empty"]["kernel"].shape == (0, 3)


def test_equinox_models_whose_trees_are_callable():
    model = eqx.filter(eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0)), eqx.is_inexact_array)
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, model)
    equinox = momentax.routing.equinox()
    by_function = functools.partial(momentax.routing.no_decay_on_vectors, routing=equinox)
    updates = [
        (tx := momentax.muon(0.1, weight_decay=0.1, weight_decay_mask=m, routing=equinox)).update(
            model, tx.init(model), model
        )[0]
        for m in (mask, by_function)
    ]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *updates))
