"""Checks of the contract with Optax and with the caller: it composes, and says what it needs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax

from momentax.testing._compare import assert_close, assert_identical, assert_same_structure, host
from momentax.testing._subject import EVERYTHING, LOSSES, Subject, gradients, parameters, updates_of
from momentax.testing._when import when


def _is_number(subject, name):
    return isinstance(subject.argument(name), float) and name not in subject.traits.static_args


def check_returns_updates_like_the_gradients(subject: Subject):
    """`update` returns updates shaped like the gradients, and a state built like that of `init`."""
    params, grads = parameters(names=EVERYTHING), gradients(names=EVERYTHING)[0]
    state = subject.build().init(params)
    updates, new_state = jax.eval_shape(subject.update, state, grads, params)
    assert_same_structure(updates, grads, "updates")
    assert_same_structure(new_state, state, "state after a step")
    shapes = jax.tree.map(lambda u, g: u.shape == g.shape, updates, grads)
    assert all(jax.tree.leaves(shapes)), f"updates have other shapes than the gradients: {shapes}"


def check_ignores_unknown_extra_arguments(subject: Subject):
    """Extra arguments meant for other members of a chain change nothing."""
    transform = subject.build()
    assert isinstance(transform, optax.GradientTransformationExtraArgs), (
        "the factory should return an optax.GradientTransformationExtraArgs whose `update` takes "
        "`**extra_args`; optax.with_extra_args_support makes one."
    )

    def update(updates, state, params=None, **extra_args):
        return transform.update(updates, state, params, meant_for_others=jnp.ones(2), **extra_args)

    talkative = optax.GradientTransformationExtraArgs(transform.init, update)
    assert_close(subject.run(talkative), list(subject.reference), "run with an unknown extra argument")


def check_works_in_chain(subject: Subject):
    """Between two transforms that do nothing it does the same."""
    chain = optax.chain(optax.identity(), subject.transform, optax.identity())
    assert_close(updates_of(subject.run(chain)), updates_of(subject.reference), "updates inside optax.chain")


def _outside(tree):
    """The leaves that `masked` and `partition` take from the transformation, and the others."""
    mlp = {name: layer for name, layer in tree["mlp"].items() if name != "up"}
    return tree["mlp"]["up"], {**tree, "mlp": mlp}


def check_works_in_masked(subject: Subject):
    """Under `optax.masked` the masked leaves pass through untouched, the others are treated as ever."""
    mask = jax.tree.map(lambda _: True, parameters())
    mask["mlp"]["up"] = False
    moments = subject.run(optax.masked(subject.transform, mask))
    for moment, expected, grads in zip(moments, subject.reference, gradients(), strict=True):
        masked, rest = _outside(moment.updates)
        assert_identical(masked, _outside(grads)[0], "masked leaves")
        if not subject.traits.couples_leaves:
            assert_close(rest, _outside(expected.updates)[1], "leaves outside the mask")


def check_works_in_partition(subject: Subject):
    """Under `optax.partition` it treats its own leaves as ever and leaves the others to their transform."""
    labels = jax.tree.map(lambda _: "technique", parameters())
    labels["mlp"]["up"] = jax.tree.map(lambda _: "other", labels["mlp"]["up"])
    split = optax.partition({"technique": subject.transform, "other": optax.scale(-2.0)}, labels)
    for moment, expected, grads in zip(subject.run(split), subject.reference, gradients(), strict=True):
        others, rest = _outside(moment.updates)
        doubled = jax.tree.map(lambda g: -2.0 * g, _outside(grads)[0])
        assert_close(others, doubled, "leaves of the other transform")
        if not subject.traits.couples_leaves:
            assert_close(rest, _outside(expected.updates)[1], "leaves of the technique")


def check_works_in_multi_steps(subject: Subject):
    """Under `optax.MultiSteps` two half batches make one step with the mean gradient."""
    halves = optax.MultiSteps(subject.transform, 2)
    transform = optax.GradientTransformationExtraArgs(halves.init, halves.update)
    step, params = jax.jit(subject.advance(transform)), parameters()
    state = transform.init(params)
    steps = zip(gradients(), gradients(seed=2), LOSSES, subject.reference, strict=True)
    for grads, noise, value, expected in steps:
        idle = step(params, state, jax.tree.map(jnp.add, grads, noise), value)
        zeros = jax.tree.map(jnp.zeros_like, idle.updates)
        assert_identical(idle.updates, zeros, "updates of the first half batch")
        moment = step(params, idle.state, jax.tree.map(jnp.subtract, grads, noise), value)
        assert_close(moment.updates, expected.updates, "updates of the second half batch")
        params, state = moment.params, moment.state


def check_works_in_inject_hyperparams(subject: Subject):
    """With its numbers injected by `optax.inject_hyperparams`, hence traced, it does the same."""
    with jax.enable_x64(True):
        factory = optax.inject_hyperparams(subject.make, static_args=subject.traits.static_args)
        params, grads = parameters(jnp.float64), gradients(jnp.float64)
        injected = factory(*subject.arguments, **subject.keywords)
        numbers = {name for name in inspect.signature(subject.make).parameters if _is_number(subject, name)}
        missing = numbers - set(injected.init(params).hyperparams)
        assert not missing, f"optax.inject_hyperparams finds no number in {', '.join(sorted(missing))}"
        actual = subject.run(injected, params=params, grads=grads, step=jax.jit(subject.advance(injected)))
        expected = subject.run(params=params, grads=grads)
        assert_close(updates_of(actual), updates_of(expected), "updates with injected numbers")


def check_works_in_apply_if_finite(subject: Subject):
    """Under `optax.apply_if_finite` a step with a NaN is left out and the run goes on without it."""
    grads = gradients()
    bad = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads[0])
    guarded = optax.apply_if_finite(subject.transform, 2)
    step, params = jax.jit(subject.advance(guarded)), parameters()
    first = step(params, guarded.init(params), grads[0], LOSSES[0])
    skipped = step(first.params, first.state, bad, LOSSES[1])
    assert_close(skipped.params, first.params, "parameters after a step with NaN")
    second = step(skipped.params, skipped.state, grads[1], LOSSES[1])
    expected = subject.reference[1].updates
    assert_close(second.updates, expected, "updates after the step that was left out")


@when(lambda traits: not traits.needs_params)
def check_works_without_params(subject: Subject):
    """`update(updates, state)` does the same as with `params`."""
    transform = optax.GradientTransformationExtraArgs(
        subject.transform.init,
        lambda updates, state, params=None, **extra: subject.transform.update(updates, state, **extra),
    )
    assert_close(updates_of(subject.run(transform)), updates_of(subject.reference), "updates without params")


@when(lambda traits: traits.complex_ok)
def check_works_on_complex_leaves(subject: Subject):
    """A complex leaf gets a finite complex update, whose phase follows the gradient's."""
    params = {"phase": jnp.asarray([1 + 1j, -2j, 3.0, 0.5 - 0.5j], jnp.complex64)}
    grads = {"phase": jnp.asarray([1j, 2.0, -1 + 1j, 1.0], jnp.complex64)}
    updates = subject.update(subject.transform.init(params), grads, params)[0]["phase"]
    assert updates.dtype == jnp.complex64, f"the update of a complex64 leaf is {updates.dtype}"
    assert np.all(np.isfinite(host(updates))), "the update of a complex leaf is not finite"
    assert np.any(np.abs(np.imag(host(updates))) > 0), "the update of a complex leaf is real"
