"""Decays against their definitions, and the masks that limit them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from momentax import decays, routing


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


PARAMS = {"dense": {"kernel": [[1.0, -2.0], [3.0, 0.0]], "bias": [5.0, -1.0]}}


def params():
    return jax.tree.map(jnp.array, PARAMS, is_leaf=lambda x: isinstance(x, list))


def step(tx, u, w):
    return tx.update(u, tx.init(w), w)[0]


def test_decoupled_is_the_decay_of_optax():
    w = params()
    u = jax.tree.map(jnp.cos, w)
    ours, theirs = step(decays.decoupled(0.3), u, w), step(optax.add_decayed_weights(0.3), u, w)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_proximal_minimises_its_objective():
    w, u, eta, lam = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 1.0, -1.0]), 0.2, 0.7
    new = w + step(decays.proximal(eta, lam), u, w)
    objective = lambda x: u @ x + (x - w) @ (x - w) / (2 * eta) + lam / 2 * x @ x  # noqa: E731
    np.testing.assert_allclose(jax.grad(objective)(new), 0, atol=1e-13)


def test_cautious_spares_entries_that_the_step_makes_longer():
    w, u = jnp.array([1.0, -1.0, 1.0, -1.0, 2.0]), jnp.array([1.0, 1.0, -1.0, -1.0, 0.0])
    np.testing.assert_allclose(step(decays.cautious(0.5), u, w), u + 0.5 * w * jnp.array([1, 0, 0, 1, 1]))


def test_a_cautious_step_decays_before_it():
    w, u = jnp.array([1.0, -1.0, 1.0, -1.0, 2.0]), jnp.array([1.0, 1.0, -1.0, -1.0, 0.0])
    new = w + step(decays.take_step(0.1, 0.5, decay="cautious"), u, w)
    np.testing.assert_allclose(new, w - 0.1 * u - 0.05 * w * jnp.array([1, 0, 0, 1, 1]), rtol=1e-15)


def test_after_step_decays_the_stepped_weight():
    w, u, eta, lam = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 1.0, -1.0]), 0.2, 0.7
    new = w + step(decays.after_step(eta, lam), u, w)
    np.testing.assert_allclose(new, (1 - eta * lam) * (w - eta * u), rtol=1e-14)


def test_schedules_of_decay_after_the_step_are_read_at_each_step():
    rate, decay = (lambda count: 0.1 + 0.1 * count), (lambda count: 0.9 - 0.3 * count)
    tx = decays.after_step(rate, decay)
    w, state = jnp.array([2.0]), tx.init(jnp.array([2.0]))
    for t in range(4):
        expected = (1 - rate(t) * decay(t)) * (w - rate(t))
        u, state = tx.update(jnp.ones(1), state, w)
        w = w + u
        np.testing.assert_allclose(w, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("decay", "stepped"),
    [
        ("decoupled", lambda w, u, eta, lam: (1 - eta * lam) * w - eta * u),
        ("proximal", lambda w, u, eta, lam: (w - eta * u) / (1 + eta * lam)),
        ("after_step", lambda w, u, eta, lam: (1 - eta * lam) * (w - eta * u)),
    ],
)
def test_take_step_ends_a_chain_in_each_form(decay, stepped):
    w, u, eta, lam = params(), jax.tree.map(jnp.cos, params()), 0.2, 0.7
    tx = decays.take_step(eta, lam, routing.no_decay_on_vectors, decay=decay)
    new = jax.tree.map(jnp.add, w, step(tx, u, w))["dense"]
    kernel, bias = stepped(w["dense"]["kernel"], u["dense"]["kernel"], eta, lam), w["dense"]["bias"]
    np.testing.assert_allclose(new["kernel"], kernel, rtol=1e-14)
    np.testing.assert_allclose(new["bias"], bias - eta * u["dense"]["bias"], rtol=1e-14)
    plain = step(decays.take_step(eta, decay=decay), u, w)
    np.testing.assert_allclose(plain["dense"]["kernel"], -eta * u["dense"]["kernel"], rtol=1e-14)


def test_an_unknown_form_of_decay_is_refused():
    with pytest.raises(ValueError, match="take_step: `decay` must be one of.*'after_step'"):
        decays.take_step(0.1, 0.1, decay="before_step")


MASKS = {
    "function": routing.no_decay_on_vectors,
    "tree": {"dense": {"kernel": True, "bias": False}},
    "none": None,
    "prefix": {"dense": False},
}


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize(
    ("decay", "factor"),
    [
        (lambda mask: decays.decoupled(0.5, mask), 0.5),
        (lambda mask: decays.proximal(1.0, 1.0, mask), -0.5),
        (lambda mask: decays.after_step(1.0, 0.5, mask), -0.5),
    ],
    ids=["decoupled", "proximal", "after_step"],
)
def test_masks(mask, decay, factor):
    w = params()
    zero = jax.tree.map(jnp.zeros_like, w)
    moved = step(decay(MASKS[mask]), zero, w)
    expected = {"function": (1, 0), "tree": (1, 0), "none": (1, 1), "prefix": (0, 0)}[mask]
    np.testing.assert_array_equal(moved["dense"]["kernel"], factor * w["dense"]["kernel"] * expected[0])
    np.testing.assert_array_equal(moved["dense"]["bias"], factor * w["dense"]["bias"] * expected[1])


def test_a_mask_that_does_not_match_is_refused():
    with pytest.raises(ValueError, match="decoupled: the mask does not match"):
        step(decays.decoupled(0.5, {"other": True}), params(), params())


def test_negative_decay_is_refused():
    for factory in (decays.decoupled, decays.cautious):
        with pytest.raises(ValueError, match="weight_decay"):
            factory(-0.1)
    for factory in (decays.proximal, decays.after_step):
        with pytest.raises(ValueError, match=f"{factory.__name__}.*learning_rate"):
            factory(-0.1, 0.0)
