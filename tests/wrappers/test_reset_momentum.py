"""Resets: a period is a fresh start, what counts stays, and the step size returns along the stated cosine."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax

EVERY, STEPS = 3, 8
PARAMS = np.ones(5)
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "spam_reset_spikes.npz"


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gradients(steps=STEPS):
    return jax.random.normal(jax.random.key(0), (steps, 5))


def run(tx, gs, params=PARAMS):
    """The updates, and the state after each step."""

    def step(state, g):
        u, state = tx.update(g, state, params)
        return state, (u, state)

    return jax.lax.scan(step, tx.init(params), gs)[1]


INNER = {  # and whether integers must restart too
    "heavy_ball": (momentax.heavy_ball(0.9, nesterov=True), False),
    "scale_by_adam": (momentax.scale_by_adam(b2=0.9), False),
    "adapt_memory": (momentax.adapt_memory(metric="diagonal", b2=0.9), False),  # one of its products starts at one
    "chain": (optax.chain(momentax.scale_by_adam(), momentax.heavy_ball(), optax.scale(-1.0)), False),
    "optax.adamw": (optax.adamw(optax.linear_schedule(0.1, 0.0, 10)), True),  # debiases and schedules by its count
    "adapt_memory by count": (momentax.adapt_memory(0.1, offset="zero"), True),  # its first step is special
}


@pytest.mark.parametrize("name", INNER)
def test_each_period_is_a_run_from_the_start(name):
    inner, restart_counts = INNER[name]
    gs = gradients()
    fresh = jax.jit(jax.vmap(lambda gs: run(inner, gs)[0]))
    for when, starts in (("before", (0, EVERY - 1, 2 * EVERY - 1)), ("after", (0, EVERY, 2 * EVERY - 1))):
        tx = momentax.reset_momentum(inner, EVERY, when=when, restart_counts=restart_counts)
        updates, _ = run(tx, gs)
        periods = fresh(jnp.stack([gs[start : start + EVERY] for start in starts]))
        ends = (*starts[1:], STEPS) if when == "before" else (EVERY, 2 * EVERY)
        for start, end, period in zip(starts, ends, periods, strict=False):
            np.testing.assert_allclose(updates[start:end], period[: end - start], rtol=1e-12)


@pytest.mark.parametrize("restart_counts", [False, True])
def test_floats_go_back_and_what_counts_stays(restart_counts):
    """Integers and keys stay, unless they are to restart."""
    inner = optax.chain(momentax.scale_by_adam(), optax.add_noise(0.1, 0.5, key=7), optax.trace(0.9))
    tx = momentax.reset_momentum(inner, EVERY, when="after", restart_counts=restart_counts)
    start, (_, states) = inner.init(PARAMS), run(tx, gradients(EVERY))
    for fresh, after in zip(jax.tree.leaves(start), jax.tree.leaves(states.inner), strict=True):
        if jnp.issubdtype(fresh.dtype, jnp.floating):
            assert jnp.any(after[-2] != fresh)
            np.testing.assert_array_equal(after[-1], fresh)
        elif jnp.issubdtype(fresh.dtype, jax.dtypes.prng_key) or fresh.dtype == jnp.uint32:
            assert jnp.array_equal(after[-1], fresh) == restart_counts
        else:
            assert after[-1] == (0 if restart_counts else EVERY)
    assert states.count[-1] == EVERY


@pytest.mark.parametrize("restart_counts", [False, True])
def test_a_learning_rate_that_the_user_changed_survives(restart_counts):
    inner = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0, momentum=0.5)
    tx = momentax.reset_momentum(inner, EVERY, restart_counts=restart_counts)
    state = tx.init(PARAMS)
    state.inner.hyperparams["learning_rate"] = jnp.asarray(0.25)
    sizes = []
    for _ in range(2 * EVERY):
        u, state = tx.update(jnp.ones(5), state, PARAMS)
        sizes.append(u[0])
    np.testing.assert_allclose(sizes, -0.25 * np.array([1, 1.5, 1, 1.5, 1.75, 1]), rtol=1e-12)


def test_injected_schedules_restart_with_the_counts():
    inner = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(1.0, 0.0, 4))
    updates, _ = run(momentax.reset_momentum(inner, EVERY, restart_counts=True), jnp.ones((5, 5)))
    np.testing.assert_allclose(updates[:, 0], [-1, -0.75, -1, -0.75, -0.5])


def test_kept_fields_are_not_reset():
    tx = momentax.reset_momentum(momentax.scale_by_adam(0.9, 0.99), EVERY, keep=("mu_weight", "nu_weight"))
    _, states = run(tx, gradients(EVERY))
    np.testing.assert_allclose(states.inner.mu[-1], 0.1 * gradients(EVERY)[-1], rtol=1e-12)
    np.testing.assert_allclose(states.inner.mu_weight[-1], 1 - 0.9**EVERY)
    np.testing.assert_allclose(states.inner.nu_weight[-1], 1 - 0.99**EVERY)


def test_master_weights_belong_around_the_resets_or_are_kept():
    """They hold what the weights have no room for, and a reset inside leaves them alone."""
    params = jnp.ones(3, jnp.bfloat16)

    def train(tx):
        def step(carry, _):
            params, state = carry
            u, state = tx.update(jnp.full(3, -1e-3, jnp.bfloat16), state, params)
            return (optax.apply_updates(params, u), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=20)[0][0]

    around = train(momentax.keep_master_weights(momentax.reset_momentum(optax.sgd(1.0), EVERY)))
    assert around[0] == jnp.bfloat16(1.02)
    masters = momentax.keep_master_weights(optax.sgd(1.0))
    np.testing.assert_array_equal(train(momentax.reset_momentum(masters, EVERY, keep=("master",))), around)
    assert train(momentax.reset_momentum(masters, EVERY))[0] == 1  # each reset rounds the steps away


def factors(every, warmup, steps):
    tx = momentax.reset_momentum(optax.identity(), every, warmup)
    return run(tx, jnp.ones((steps, 1)), jnp.ones(1))[0][:, 0]


def test_the_step_size_returns_along_a_cosine():
    every, warmup, steps = 5, 4, 16

    def factor(t):
        j = t % every
        return 1 - 0.99 * (1 + np.cos(np.pi * j / (warmup + 1))) / 2 if t >= every and j < warmup else 1.0

    expected = [factor(t) for t in range(1, steps + 1)]
    np.testing.assert_allclose(factors(every, warmup, steps), expected, rtol=1e-13)
    assert expected[:4] == [1, 1, 1, 1] and expected[8] == 1
    np.testing.assert_allclose(expected[4], 0.01)


def test_the_factors_are_those_of_the_official_code():
    with np.load(GOLDEN) as file:
        hyper, expected = json.loads(str(file["meta"]))["hyperparameters"], file["s/scale/all"]
    np.testing.assert_allclose(factors(hyper["DeltaT"], hyper["warmup_steps"], len(expected)), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(every=0), "`every` must be a number of steps"),
        (dict(every=True), "`every` must be a number of steps"),
        (dict(every=2.0), "`every` must be a number of steps"),
        (dict(every=None), "leave the wrapper out"),
        (dict(every=4, warmup=5), "`every` must not be below `warmup`"),
        (dict(every=4, warmup=0), "`warmup` must be a number of steps"),
        (dict(every=lambda count, updates, params: count == 2, warmup=2), "`warmup` counts from a known period"),
        (dict(every=4, when="during"), "`when` must be one of"),
        (dict(every=4, keep="mu_weight"), "`keep`"),  # a text is a sequence of letters, no tuple of names
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value)),
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=f"reset_momentum.*{message}"):
        momentax.reset_momentum(momentax.heavy_ball(), **arguments)
