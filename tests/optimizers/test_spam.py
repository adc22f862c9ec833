"""SPAM: the Adam it starts from, its steps after a reset, and what decays where weights are sparse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax
from momentax import routing

B1, B2 = 0.9, 0.999


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def weights():
    keys = jax.random.split(jax.random.key(0))
    return {"dense": {"kernel": jax.random.normal(keys[0], (8, 6)), "bias": jax.random.normal(keys[1], (6,))}}


def step_without_gradient(tx, params):
    return jax.jit(lambda w: tx.update(jax.tree.map(jnp.zeros_like, w), tx.init(w), w)[0])(params)["dense"]


def sizes(tx, steps):
    """Size of each step under a constant gradient, in units of the learning rate."""

    def step(state, _):
        u, state = tx.update(jnp.full(1, 3.0), state, jnp.zeros(1))
        return state, jnp.abs(u[0])

    return np.asarray(jax.lax.scan(step, tx.init(jnp.zeros(1)), length=steps)[1])


def test_with_everything_off_it_is_adam_with_an_eps_that_is_not_debiased_and_decay_after_the_step():
    eta, lam, eps = 0.1, 0.5, 0.3
    tx = momentax.spam(eta, B1, B2, eps, lam, threshold=None, reset_every=None, warmup=None)
    w = np.array([1.0, -2.0, 0.5])
    m = v = np.zeros(3)
    params, state = jnp.asarray(w), tx.init(jnp.asarray(w))
    for t in range(1, 6):
        g = np.cos(w + t)
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        step = eta * np.sqrt(1 - B2**t) / (1 - B1**t) * m / (np.sqrt(v) + eps)
        w = (1 - eta * lam) * (w - step)
        updates, state = tx.update(jnp.asarray(g), state, params)
        params = params + updates
        np.testing.assert_allclose(params, w, rtol=1e-13)


def test_steps_after_a_reset_are_several_times_too_long():
    """k = 1, 2, ... counts gradients after the reset; the debiasing goes on with t."""
    every = 400
    steps = sizes(momentax.spam(1.0, B1, B2, eps=0.0, threshold=None, reset_every=every, warmup=None), every + 99)
    np.testing.assert_allclose(steps[: every - 1], np.ones(every - 1), rtol=1e-9)
    k, t = np.arange(1, 101), np.arange(every, every + 100)
    ratio = (1 - B1**k) / np.sqrt(1 - B2**k)
    np.testing.assert_allclose(steps[every - 1 :], ratio * np.sqrt(1 - B2**t) / (1 - B1**t), rtol=1e-9)
    np.testing.assert_allclose(ratio[[0, 11, 99]], [3.2, 6.5, 3.2], atol=0.1)
    assert abs(np.argmax(ratio) - 11) <= 1


def test_restarting_the_bias_makes_them_fresh_steps_which_the_warm_up_scales():
    every, warmup = 6, 4
    options = dict(eps=0.0, threshold=None, reset_every=every, restart_bias=True)
    np.testing.assert_allclose(sizes(momentax.spam(1.0, warmup=None, **options), 15), np.ones(15), rtol=1e-9)
    steps = sizes(momentax.spam(1.0, warmup=warmup, **options), 15)
    j = np.arange(15 - every + 1) % every
    factors = np.where(j < warmup, 1 - 0.99 * (1 + np.cos(np.pi * j / (warmup + 1))) / 2, 1)
    np.testing.assert_allclose(steps, [*np.ones(every - 1), *factors], rtol=1e-9)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_decay_reaches_the_kept_entries_and_in_the_code_no_sparse_leaf(variant):
    eta, lam, w = 0.1, 0.5, weights()
    tx = momentax.spam(eta, weight_decay=lam, density=0.25, variant=variant)
    updates = step_without_gradient(tx, w)
    kernel = updates["kernel"]
    np.testing.assert_allclose(updates["bias"], -eta * lam * w["dense"]["bias"])
    moved = kernel != 0
    assert jnp.sum(moved) == (12 if variant == "paper" else 0)
    np.testing.assert_allclose(kernel[moved], -eta * lam * w["dense"]["kernel"][moved])


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize(
    "mask",
    [lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params), routing.no_decay_on_vectors],
    ids=["by rank", "by name"],
)
def test_masks_of_the_decay_see_the_leaves_as_they_are(mask, variant):
    """Also where vectors are sparse, whose kept entries the optimizer is shown in place of the leaf."""
    everywhere = lambda params: jax.tree.map(lambda _: True, params)  # noqa: E731
    tx = momentax.spam(
        0.1, weight_decay=0.5, weight_decay_mask=mask, density=0.5, density_mask=everywhere, variant=variant
    )
    updates = step_without_gradient(tx, weights())
    assert not jnp.any(updates["bias"])
    assert jnp.any(updates["kernel"]) == (variant == "paper")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(reset_every=100), "`reset_every` must not be below `warmup`"),
        (dict(variant="code"), "`variant` must be one of"),
        (dict(density=0.5, masks={"w": np.ones((2, 4, 4), bool)}), "`density`.*`masks`"),
        (dict(density_mask={"w": True}, masks={"w": np.ones((2, 4, 4), bool)}), "`masks`"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"(spam|sparse_momentum).*{message}"):
        momentax.spam(0.1, **arguments).init({"w": jnp.ones((4, 4))})
