"""Spike clipping: its bound, when it is active, and that its own average is the one of an Adam behind it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax

THETA, B2, AFTER, PERIOD, STEPS = 4.0, 0.9, 2, 7, 24


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def gradients():
    """Some entries of every step are spikes, in steps with and without clipping."""
    g = jax.random.normal(jax.random.key(0), (STEPS, 3, 4))
    return jnp.where(jax.random.bernoulli(jax.random.key(1), 0.3, g.shape), 50 * g, g)


def run(tx, gs):
    """The updates, and the state after each step."""

    def step(state, g):
        u, state = tx.update(g, state)
        return state, (u, state)

    return jax.lax.scan(step, tx.init(jnp.zeros_like(gs[0])), gs)[1]


@pytest.mark.parametrize("period", [PERIOD, None])
def test_entries_are_bounded_by_their_history_in_the_active_steps(gradients, period):
    tx = momentax.clip_spikes(threshold=THETA, clip_after=AFTER, reset_every=period, b2=B2)
    clipped, states = run(tx, gradients)
    history = np.concatenate([np.zeros_like(states.nu[:1]), states.nu])
    spikes_passed = 0
    for t, (g, u) in enumerate(zip(np.asarray(gradients), np.asarray(clipped), strict=True), start=1):
        v_tm1, v = history[t - 1], history[t]
        spike = (g * g > THETA * v_tm1) & (v_tm1 > 0)
        active = t >= AFTER and (period is None or t % period >= AFTER)
        if not active:
            spikes_passed += np.sum(spike)
            spike[:] = False
        np.testing.assert_array_equal(u[~spike], g[~spike])  # bit by bit
        np.testing.assert_array_equal(np.sign(u), np.sign(g))
        np.testing.assert_allclose(np.abs(u[spike]), np.sqrt(THETA * v_tm1[spike]), rtol=1e-15)
        np.testing.assert_allclose(v, B2 * v_tm1 + (1 - B2) * u * u, rtol=1e-13)
        if active:
            assert spike.any(), f"nothing was clipped at step {t}"
            assert np.all(v <= (B2 + (1 - B2) * THETA) * v_tm1 * (1 + 1e-13))
    assert (spikes_passed > 0) == (period is not None)


@pytest.mark.parametrize(
    ("adam", "rtol"), [(momentax.scale_by_adam, 0), (optax.scale_by_adam, 1e-12)], ids=["momentax", "optax"]
)
def test_its_own_average_is_the_one_of_the_adam_behind_it(gradients, adam, rtol):
    """So the wrapper and the chain give the same updates. Not compiled, hence bit by bit; Optax rounds otherwise."""
    options = dict(threshold=THETA, clip_after=AFTER, reset_every=PERIOD)
    wrapper = momentax.clip_spikes(adam(b2=B2), **options)
    chain = optax.chain(momentax.clip_spikes(b2=B2, **options), adam(b2=B2))
    zeros = jnp.zeros_like(gradients[0])
    wrapped, chained = wrapper.init(zeros), chain.init(zeros)
    for g in gradients[:12]:
        u, wrapped = wrapper.update(g, wrapped)
        expected, chained = chain.update(g, chained)
        np.testing.assert_allclose(u, expected, rtol=rtol)
    np.testing.assert_allclose(chained[0].nu, chained[1].nu, rtol=rtol)
    np.testing.assert_allclose(wrapped.inner.nu, chained[0].nu, rtol=rtol)
    assert wrapped.nu is None


@pytest.mark.parametrize(("variant", "alive"), [("paper", True), ("official", False)])
def test_an_entry_without_gradient_until_clipping_starts(variant, alive):
    """The code freezes it for good; the default lets it in."""
    gs = jnp.ones((10, 2)).at[:AFTER, 1].set(0.0)
    updates, states = run(momentax.clip_spikes(threshold=100.0, clip_after=AFTER, b2=B2, variant=variant), gs)
    np.testing.assert_array_equal(updates[:, 0], gs[:, 0])
    np.testing.assert_array_equal(updates[:, 1], gs[:, 1] if alive else jnp.zeros(10))
    assert (states.nu[-1, 1] > 0) == alive


def test_infinite_entries_are_clipped_where_there_is_a_history():
    gs = jnp.ones((6, 3)).at[:, 2].set(0.0).at[3].set(jnp.array([-jnp.inf, jnp.nan, jnp.inf]))
    updates, states = run(momentax.clip_spikes(threshold=THETA, clip_after=AFTER, b2=B2), gs)
    assert updates[3, 0] == -jnp.sqrt(THETA * states.nu[2, 0])
    assert jnp.isfinite(states.nu[:, 0]).all() and jnp.isfinite(updates[:, 0]).all()
    assert jnp.isnan(updates[3, 1]) and jnp.isnan(states.nu[3:, 1]).all()  # not a number is not judged
    assert jnp.isposinf(updates[3, 2])  # nor is what has no history
    early, _ = run(momentax.clip_spikes(threshold=THETA, clip_after=9, b2=B2), gs)
    assert jnp.isneginf(early[3, 0])


@pytest.mark.parametrize(
    "inner", [momentax.heavy_ball(), optax.chain(momentax.scale_by_adam(), optax.identity())], ids=["buffer", "chain"]
)
def test_an_inner_transformation_without_squares_is_refused(inner):
    with pytest.raises(TypeError, match=r"clip_spikes.*`nu`.*scale_by_adam.*`inner` out"):
        momentax.clip_spikes(inner).init(jnp.zeros(2))
