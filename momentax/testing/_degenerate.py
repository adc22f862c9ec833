"""Checks at the edges: zeros, tiny and huge gradients, NaN."""

import jax
import jax.numpy as jnp
import numpy as np

from momentax.testing._compare import assert_close, assert_finite, host, leaves_with_names
from momentax.testing._subject import LOSSES, STEPS, Subject, gradients, parameters
from momentax.testing._when import when

HUGE, TINY = 1e8, 1e-25  # a spike, and gradients whose squares are zero in float32


def _scaled(tree, factor):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def _assert_run_is_finite(subject, what, **run):
    for moment in subject.run(**run):
        assert_finite(moment, what)


def check_zero_gradients_stay_finite(subject: Subject):
    """Gradients that are zero from the start, and zero after some that are not."""
    zeros = _scaled(gradients()[0], 0.0)
    _assert_run_is_finite(subject, "a run with zero gradients", grads=[zeros] * STEPS)
    _assert_run_is_finite(subject, "a run whose gradients become zero", grads=[gradients()[0], zeros, zeros])


def check_zero_weights_stay_finite(subject: Subject):
    """Parameters that start at zero."""
    _assert_run_is_finite(subject, "a run from zero parameters", params=_scaled(parameters(), 0.0))


def check_a_spike_stays_finite(subject: Subject):
    """One gradient a hundred million times the others, before and after ordinary ones."""
    grads = gradients()
    for at in range(STEPS - 1):
        spiked = [_scaled(tree, HUGE) if step == at else tree for step, tree in enumerate(grads)]
        _assert_run_is_finite(subject, f"a run with a spike at step {at}", grads=spiked)


def check_tiny_gradients_stay_finite(subject: Subject):
    """Gradients that vanish when squared."""
    _assert_run_is_finite(subject, "a run with tiny gradients", grads=[_scaled(g, TINY) for g in gradients()])


def _with_nan(tree):
    scale = tree["norm"]["scale"].at[0].set(jnp.nan)
    return {**tree, "norm": {"scale": scale}}


@when(lambda traits: traits.non_finite == "propagates")
def check_nan_propagates(subject: Subject):
    """A NaN in a gradient shows in the update of that leaf, and in no other unless leaves are coupled."""
    first = subject.run(grads=[_with_nan(gradients()[0])])[0]
    shown = np.isnan(host(first.updates["norm"]["scale"]))
    assert shown.any(), "a NaN in the gradient does not show in the update: say Traits(non_finite='skips')?"
    if not subject.traits.couples_leaves:
        rest = {name: tree for name, tree in first.updates.items() if name != "norm"}
        expected = {name: tree for name, tree in subject.reference[0].updates.items() if name != "norm"}
        assert_close(rest, expected, "updates of the other leaves")


@when(lambda traits: traits.non_finite == "skips")
def check_nan_is_skipped(subject: Subject):
    """A step with a NaN gives zero updates, and the next is as if this one had not been."""
    grads = gradients()
    start = parameters()
    first = subject.advance()(start, subject.transform.init(start), grads[0], LOSSES[0])
    for bad in (_with_nan(grads[1]), _with_inf(grads[1])):
        skipped = subject.advance()(first.params, first.state, bad, LOSSES[1])
        moved = [name for name, leaf in leaves_with_names(skipped.updates) if np.any(host(leaf) != 0)]
        assert not moved, f"a step with a non-finite gradient moves {', '.join(moved)}"
        second = subject.advance()(first.params, skipped.state, grads[1], LOSSES[1])
        assert_close(second.updates, subject.reference[1].updates, "updates after a step that was skipped")


def _with_inf(tree):
    return {**tree, "temperature": jnp.full_like(tree["temperature"], jnp.inf)}
