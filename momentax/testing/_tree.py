"""Checks that any parameter tree will do, and that leaves mind their own business."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from momentax.testing._compare import assert_close, assert_same_structure, host, leaves_with_names, mirrors
from momentax.testing._subject import EVERYTHING, LOSSES, Subject, gradients, parameters, updates_of
from momentax.testing._when import when


def check_works_on_an_empty_tree(subject: Subject):
    """A tree without leaves is no error."""
    moments = subject.run(params={}, grads=[{}] * len(LOSSES))
    assert_same_structure(moments[-1].updates, {}, "updates of an empty tree")


def check_leaves_none_alone(subject: Subject):
    """A leaf that is None, as after filtering, stays None and changes nothing else."""

    def with_none(tree):
        return {**tree, "frozen": None, "norm": {**tree["norm"], "bias": None}}

    moments = subject.run(params=with_none(parameters()), grads=[with_none(tree) for tree in gradients()])
    expected = [with_none(moment.updates) for moment in subject.reference]
    assert_close(updates_of(moments), expected, "updates of a tree with None leaves")


@when(lambda traits: not traits.reads_names)
def check_names_do_not_matter(subject: Subject):
    """Leaves with other names, in another order and in lists and tuples get the same updates."""

    def rearranged(tree):
        mlp = tree["mlp"]
        first = (tree["norm"], tree["dropout"], tree["temperature"])
        return {"z": [mlp["down"], (mlp["up"]["kernel"],)], "b": mlp["up"]["bias"], "a": first}

    moments = subject.run(params=rearranged(parameters()), grads=[rearranged(tree) for tree in gradients()])
    expected = [rearranged(moment.updates) for moment in subject.reference]
    assert_close(updates_of(moments), expected, "updates of the same leaves under other names")


@when(lambda traits: traits.reads_names)
def check_order_does_not_matter(subject: Subject):
    """Modules under other names, hence in another order and deeper down, get the same updates."""

    def rearranged(tree):
        return {"block_0": {"norm": tree["norm"]}, "block_1": {"mlp": tree["mlp"]}, "temperature": tree["temperature"]}

    moments = subject.run(params=rearranged(parameters()), grads=[rearranged(tree) for tree in gradients()])
    expected = [rearranged(moment.updates) for moment in subject.reference]
    assert_close(updates_of(moments), expected, "updates of the same modules in another order")


def check_state_maps_onto_parameters(subject: Subject):
    """`optax.tree_map_params`, with which states get shardings, finds what mirrors a parameter and no more."""
    params = parameters(names=EVERYTHING)
    state, visited = subject.transform.init(params), []

    def visit(leaf, param):
        if not isinstance(leaf, optax.MaskedNode):
            visited.append((leaf.shape, param.shape))
        return leaf

    def masked(node):
        return isinstance(node, optax.MaskedNode)

    optax.tree_map_params(subject.transform, visit, state, params, is_leaf=masked)
    other = [shapes for shapes in visited if shapes[0] != shapes[1]]
    assert not other, (
        f"leaves taken for parameters have shapes {other[0][0]} for {other[0][1]}: "
        "keep scalars of each leaf in one vector for all leaves."
    )
    expected = len(mirrors(state, params))
    assert len(visited) == expected, f"{len(visited)} leaves of the state are found, {expected} mirror a parameter"


def _fewer(tree):
    return {"mlp": {"down": tree["mlp"]["down"]}, "temperature": tree["temperature"]}


def _updates_among_fewer(subject):
    """The updates of some leaves where there are no others, and of the same leaves among all."""
    alone = subject.run(params=_fewer(parameters()), grads=[_fewer(tree) for tree in gradients()])
    return updates_of(alone), [_fewer(tree) for tree in updates_of(subject.reference)]


@when(lambda traits: not traits.couples_leaves)
def check_other_leaves_do_not_matter(subject: Subject):
    """The update of a leaf does not depend on which other leaves there are."""
    alone, among_all = _updates_among_fewer(subject)
    assert_close(alone, among_all, "updates of a few leaves alone")


@when(lambda traits: traits.couples_leaves)
def check_leaves_are_coupled(subject: Subject):
    """The update of a leaf depends on other leaves, as the traits say."""
    equal = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, rtol=1e-4)), *_updates_among_fewer(subject))
    assert not all(jax.tree.leaves(equal)), "other leaves change no update: drop couples_leaves."


def _at_rest(subject, step, transform):
    """Updates for each step's gradients at parameters that do not move, stacked."""
    dtype, collected = subject.traits.acts_in, []
    params = parameters(dtype, names=EVERYTHING)
    state = transform.init(params)
    for grads, value in zip(gradients(dtype, names=EVERYTHING), LOSSES, strict=True):
        moment = step(params, state, grads, value)
        state = moment.state
        collected.append(moment.updates)
    return _stack(collected)


def _stack(trees):
    return jax.tree.map(lambda *leaves: np.stack([host(leaf) for leaf in leaves]), *trees)


def check_the_technique_acts(subject: Subject):
    """Updates differ from what plain passing through (`Traits.plain`) gives, on the leaves it acts on."""
    acted, grads = _at_rest(subject, subject.advance(), subject.transform), _stack(gradients(names=EVERYTHING))
    plain = subject.traits.plain
    if plain is not None:
        plain = _at_rest(subject, subject.advance(plain), plain)
    elif not subject.traits.has_learning_rate:
        plain = grads
    else:
        # the multiple of the gradient that comes closest
        plain = jax.tree.map(lambda g, u: g * np.sum(u * g) / np.sum(g * g), grads, acted)
    changed = {}
    for (name, u), (_, p) in zip(leaves_with_names(acted), leaves_with_names(plain), strict=True):
        changed[name] = np.linalg.norm(u - p) > 1e-3 * np.linalg.norm(p)
    if subject.traits.acts_on == "matrices":
        ranks = dict(leaves_with_names(jax.tree.map(lambda g: g.ndim - 1, grads)))
        small = [name for name in changed if changed[name] and ranks[name] < 2]
        assert not small, f"the technique should act on matrices only, but changes {', '.join(small)}"
        assert any(changed.values()), f"the technique changes no matrix among {', '.join(changed)}"
    else:
        same = [name for name in changed if not changed[name]]
        assert not same, f"the technique should act on every leaf, but leaves {', '.join(same)} as they are"
