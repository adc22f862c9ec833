"""The two filters of Stable-SPAM: their bounds and norms in closed form, and what they do not see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax
from momentax import routing

STEPS = 9


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gradients(shape=(3, 4)):
    """Sizes that vary by two orders of magnitude."""
    sizes = jnp.array([1.0, 0.2, 30.0, 1.0, 5.0, 0.3, 0.01, 2.0, 4.0]).reshape(STEPS, *(1 for _ in shape))
    return sizes * jax.random.normal(jax.random.key(0), (STEPS, *shape))


def run(tx, gs):
    """The updates, and the last state."""

    def step(state, g):
        u, state = tx.update(g, state)
        return state, u

    state, updates = jax.lax.scan(step, tx.init(jnp.zeros_like(gs[0])), gs)
    return np.asarray(updates), state


def average(values, decay, debias=True):
    """Closed form of an exponential moving average, after each step."""
    means = [sum((1 - decay) * decay ** (t - s) * values[s] for s in range(t + 1)) for t in range(len(values))]
    return np.array([mean / (1 - decay ** (t + 1)) if debias else mean for t, mean in enumerate(means)])


def norms(x):
    return np.linalg.norm(np.reshape(x, (len(x), -1)), axis=1)


def largest(x):
    return np.max(np.abs(x), axis=(1, 2))


# Clipping


@pytest.mark.parametrize("debias", [True, False])
def test_no_entry_leaves_larger_than_the_average_of_the_largest(debias):
    gs = gradients()
    us, _ = run(momentax.clip_to_average_max(0.9, debias=debias), gs)
    gs, bounds = np.asarray(gs), average(largest(gs), 0.9, debias)[:, None, None]
    above = np.abs(gs) > bounds
    assert 0 < np.sum(above) < above.size
    np.testing.assert_array_equal(us[~above], gs[~above])
    scaled = gs * bounds / largest(gs)[:, None, None]
    np.testing.assert_allclose(us[above], scaled[above], rtol=1e-13)
    assert np.all(np.abs(us) <= bounds * (1 + 1e-13))


def test_gradients_of_equal_size_pass_under_any_schedule():
    """Debiasing keeps account of the weights: a formula in the present decay would be wrong here."""
    gs = jnp.sign(gradients())
    us, state = run(momentax.clip_to_average_max(optax.linear_schedule(0.1, 0.95, STEPS)), gs)
    np.testing.assert_allclose(us, gs, rtol=1e-13)
    np.testing.assert_allclose(state.max_average, [state.max_weight], rtol=1e-13)


# Norms


@pytest.mark.parametrize("debias", [True, False])
def test_the_norm_is_the_average_norm_over_its_root_mean_square(debias):
    gs = gradients()
    us, _ = run(momentax.scale_to_average_norm(0.7, 0.9, 0.5, debias=debias), gs)
    size = norms(gs)
    k = average(size, 0.7, debias) / (np.sqrt(average(size**2, 0.9, debias)) + 0.5)
    np.testing.assert_allclose(us, gs * (k / size)[:, None, None], rtol=1e-12)


def test_gradients_of_constant_norm_get_the_norm_one():
    gs = gradients()
    gs = 7 * gs / norms(gs)[:, None, None]
    us, _ = run(momentax.scale_to_average_norm(eps=0.0), gs)
    np.testing.assert_allclose(norms(us), np.ones(STEPS), rtol=1e-13)


# Both


BOTH = optax.chain(momentax.clip_to_average_max(0.9), momentax.scale_to_average_norm())


def test_a_function_of_the_count_debiases_as_told():
    tau = lambda count: count + 1  # noqa: E731
    told = optax.chain(momentax.clip_to_average_max(0.9, debias=tau), momentax.scale_to_average_norm(debias=tau))
    np.testing.assert_allclose(run(told, gradients())[0], run(BOTH, gradients())[0], rtol=1e-12)


def test_gradients_scaled_alike_give_the_same_steps():
    """So the whole of Stable-SPAM, weight decay aside, does not know the unit of the loss."""
    tx = momentax.stable_spam(0.1, eps=0.0, reset_every=4)
    np.testing.assert_allclose(run(tx, 1e-6 * gradients())[0], run(tx, gradients())[0], rtol=1e-10)


@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_zero_gradients_stay_zero_and_the_averages_decay(eps):
    gs = gradients().at[0].set(0.0).at[4:].set(0.0)
    clip, scale = momentax.clip_to_average_max(0.9), momentax.scale_to_average_norm(0.7, 0.8, eps)
    us, (clipping, scaling) = run(optax.chain(clip, scale), gs)
    assert np.all(us[0] == 0) and np.all(us[4:] == 0) and np.all(norms(us[1:4]) > 0)
    _, (clipping_before, scaling_before) = run(optax.chain(clip, scale), gs[:4])
    np.testing.assert_allclose(clipping.max_average, 0.9**5 * clipping_before.max_average)
    np.testing.assert_allclose(scaling.norm_average, 0.7**5 * scaling_before.norm_average)
    np.testing.assert_allclose(scaling.norm_square_average, 0.8**5 * scaling_before.norm_square_average)


def test_each_matrix_of_a_stack_has_its_own_sizes():
    """Beside a leaf that is no stack: the states hold one number for each."""
    stacked, alone = gradients((2, 3, 4)), gradients((5, 4)) ** 3
    rules = {"stack": routing.matrix((1,), (2,), batch_axes=(0,)), "alone": routing.matrix((0,), (1,))}
    tx = optax.chain(momentax.clip_to_average_max(0.9, routing=rules), momentax.scale_to_average_norm(routing=rules))

    def step(state, g):
        u, state = tx.update(g, state)
        return state, u

    gs = {"alone": alone, "stack": stacked}
    state, us = jax.lax.scan(step, tx.init(jax.tree.map(lambda g: jnp.zeros_like(g[0]), gs)), gs)
    assert state[0].max_average.shape == state[1].norm_average.shape == (3,)
    np.testing.assert_allclose(us["alone"], run(BOTH, alone)[0], rtol=1e-12)
    for layer in range(2):
        np.testing.assert_allclose(us["stack"][:, layer], run(BOTH, stacked[:, layer])[0], rtol=1e-12)
