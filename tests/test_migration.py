"""Runs that start with Optax and go on here are the runs that Optax would have gone on with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import run

import momentax
from momentax import decays, from_optax

SCHEDULE = optax.linear_schedule(0.1, 0.01, 10)
CASES = {
    "adam": (optax.adam(SCHEDULE), optax.chain(momentax.scale_by_adam(), decays.take_step(SCHEDULE))),
    "adamw": (
        optax.adamw(SCHEDULE, b2=0.95, weight_decay=0.1),
        optax.chain(momentax.scale_by_adam(b2=0.95), decays.take_step(SCHEDULE, 0.1)),
    ),
    "sgd": (
        optax.sgd(SCHEDULE, momentum=0.9, nesterov=True),
        optax.chain(momentax.heavy_ball(0.9, nesterov=True), decays.take_step(SCHEDULE)),
    ),
    "lion": (optax.lion(SCHEDULE, weight_decay=0.1), momentax.lion_k(SCHEDULE, weight_decay=0.1)),
}


def parameters():
    shapes = {
        "attention": {"kernel": (8, 6), "bias": (6,)},
        "embed": {"embedding": (10, 8)},
        "mlp": {"kernel": (6, 8)},
    }
    keys = iter(jax.random.split(jax.random.key(0), 8))
    return jax.tree.map(lambda shape: jax.random.normal(next(keys), shape), shapes, is_leaf=lambda x: type(x) is tuple)


def dimension_numbers(params):
    return {
        name: {leaf: optax.contrib.MuonDimensionNumbers() if leaf == "kernel" else None for leaf in layer}
        for name, layer in params.items()
    }


def muons():
    theirs = optax.contrib.muon(
        SCHEDULE, weight_decay=0.1, adam_weight_decay=0.1, muon_weight_dimension_numbers=dimension_numbers
    )
    rest = optax.adamw(SCHEDULE, weight_decay=0.1, nesterov=True)
    ours = momentax.muon(SCHEDULE, weight_decay=0.1, bias_correction="optax", eps=1e-8, rest=rest)
    return theirs, ours


@pytest.mark.parametrize("name", [*CASES, "muon"])
def test_five_steps_there_and_five_here_are_ten_there(name):
    theirs, ours = muons() if name == "muon" else CASES[name]
    halfway, state = run(theirs, parameters(), theirs.init(parameters()), 0, 5)
    moved = from_optax(ours, halfway, state)
    assert jax.tree.structure(moved) == jax.tree.structure(ours.init(halfway))
    expected, there = run(theirs, halfway, state, 5, 10)
    found, here = run(ours, halfway, moved, 5, 10)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    counts = [int(x) for path, x in jax.tree_util.tree_leaves_with_path(here) if "count" in str(path[-1])]
    assert counts and set(counts) == {10}
    again = from_optax(ours, expected, there)  # averages are the same averages, weights included
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_weights_are_those_of_the_schedule_and_resets_do_not_shorten_them():
    params = {"kernel": jnp.ones((2, 3))}
    tx = momentax.scale_by_adam(optax.linear_schedule(0.5, 0.9, 8), 0.99)
    _, ran = run(tx, params, tx.init(params), 0, 7)
    theirs = optax.adam(0.1)
    _, state = run(theirs, params, theirs.init(params), 0, 7)
    moved = from_optax(tx, params, state)
    np.testing.assert_allclose(moved.mu_weight, ran.mu_weight, rtol=1e-6)
    np.testing.assert_allclose(moved.nu_weight, 1 - 0.99**7, rtol=1e-5)
    resetting = from_optax(momentax.reset_momentum(momentax.scale_by_adam(), every=3), params, state)
    np.testing.assert_allclose(resetting.inner.mu_weight, 1 - 0.9**7, rtol=1e-5)
    assert int(resetting.count) == 7


def test_dtypes_are_those_of_the_new_transformation_and_buffers_can_be_donated():
    params = {"kernel": jnp.ones((2, 3))}
    theirs = optax.adam(0.1, mu_dtype=jnp.bfloat16)
    _, state = run(theirs, params, theirs.init(params), 0, 2)
    tx = optax.chain(momentax.scale_by_adam(nu_dtype=jnp.bfloat16), decays.take_step(SCHEDULE))
    moved = from_optax(tx, params, state)
    assert (moved[0].mu["kernel"].dtype, moved[0].nu["kernel"].dtype) == (jnp.float32, jnp.bfloat16)
    jax.jit(tx.update, donate_argnums=1)(params, moved, params)


ADAM = optax.adam(0.1)
WRONG = [
    (optax.sgd(0.1, momentum=0.9), momentax.sgdp(0.1), "does not say how many steps were taken: pass `count`"),
    (ADAM, momentax.heavy_ball(), "`mu` of HeavyBallState needs leaf 'attention/bias' of `trace` in TraceState, and"),
    (
        optax.adamw(0.1),
        optax.sgd(0.1),
        "no place for leaf 'attention/bias' of `mu` in ScaleByAdamState, which would be",
    ),
    (optax.contrib.muon(0.1), momentax.muon(), "leaf 'embed/embedding' of `mu` in ScaleByAdamState, and .* MuonState"),
    (optax.adagrad(0.1), momentax.scale_by_adam(), "no rule moves leaf '0/sum_of_squares/attention/bias'"),
    (optax.inject_hyperparams(optax.adam)(0.1), momentax.scale_by_adam(), "no rule moves .* pass the state inside"),
    (ADAM, momentax.stable_spam(0.1), "'0/max_average' in the state of `tx` has no counterpart in Optax's"),
    (ADAM, momentax.scale_by_adam(amsgrad=True), "'nu_max/attention/bias' in the state of `tx` has no counterpart"),
    (optax.chain(ADAM, ADAM), momentax.scale_by_adam(), "two of leaf 'attention/bias' of `mu` in ScaleByAdamState"),
]


@pytest.mark.parametrize(("theirs", "ours", "message"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_moved_whole_is_refused(theirs, ours, message):
    params = parameters()
    with pytest.raises(ValueError, match=f"^from_optax: .*{message}"):
        from_optax(ours, params, theirs.init(params))


def test_parameters_and_counts_must_match():
    params, state = parameters(), ADAM.init(parameters())
    with pytest.raises(ValueError, match=r"leaf 'mlp/kernel' .* has shape \(6, 8\), and the parameters have \(8, 6\)"):
        from_optax(momentax.scale_by_adam(), {**params, "mlp": {"kernel": jnp.ones((8, 6))}}, state)
    with pytest.raises(ValueError, match="'mlp/kernel' .* and the parameters have no such leaf"):
        from_optax(momentax.scale_by_adam(), {name: params[name] for name in ("attention", "embed")}, state)
    with pytest.raises(ValueError, match=r"made in \[0, 3\] steps, by its counts or `count`: they must agree"):
        from_optax(momentax.scale_by_adam(), params, state, count=3)
    sgd = optax.sgd(0.1, momentum=0.9)
    assert int(from_optax(momentax.heavy_ball(), params, sgd.init(params), count=3).count) == 3
