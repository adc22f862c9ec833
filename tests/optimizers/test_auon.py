"""AuON is momentum SGD up to a scalar near 1, normalised or not; its hybrid is Muon with one step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax

ETA, GAMMA, SHAPE = 0.1, 1.5, (12, 16)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def gradients():
    """With one direction of much larger gradients, so that spectra are not flat."""
    g = jax.random.normal(jax.random.key(0), (8, *SHAPE))
    return {"kernel": g + 20 * g[:, :, :1] * g[:, :1], "bias": g[:, 0]}


def steps(tx, gradients):
    """The updates of all steps, divided by minus the learning rate."""
    params = jax.tree.map(lambda g: g[0], gradients)

    def step(state, g):
        updates, state = tx.update(g, state, params)
        return state, updates

    path = jax.jit(lambda g: jax.lax.scan(step, tx.init(params), g)[1])(gradients)
    return path["kernel"] / -ETA


@pytest.fixture
def momentum(gradients):
    average = momentax.average_gradients(0.95, debias=False, nesterov=True)
    return steps(optax.chain(average, optax.scale(-ETA)), gradients)


LARGEST = np.sqrt(1 + np.sinh(GAMMA) ** 2 / (SHAPE[0] * SHAPE[1]))  # of r


def test_the_official_form_is_momentum_up_to_a_scalar(gradients, momentum):
    updates = steps(momentax.auon(ETA, variant="official"), gradients)
    r = momentum / updates
    np.testing.assert_allclose(r, np.broadcast_to(r[:, :1, :1], r.shape), rtol=1e-10)
    assert np.all((r >= 1) & (r <= LARGEST + 1e-7)) and LARGEST < 1.012


def test_the_paper_normalises_that_momentum(gradients, momentum):
    updates = steps(momentax.auon(ETA, gamma=GAMMA), gradients)
    lengths = np.linalg.norm(momentum, axis=(1, 2), keepdims=True)
    r = momentum / lengths / updates
    np.testing.assert_allclose(r, np.broadcast_to(r[:, :1, :1], r.shape), rtol=1e-10)
    assert np.all((r >= 1) & (r <= LARGEST + 1e-7))
    spectra = np.linalg.svd(updates, compute_uv=False)
    assert np.all(spectra <= 1)  # the trust region of the paper, and its spectrum is not flattened:
    np.testing.assert_allclose(np.linalg.cond(updates), np.linalg.cond(momentum), rtol=1e-9)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_hybrid_is_one_step_of_muon(variant, gradients):
    updates = steps(momentax.hybrid_auon(ETA, variant=variant, gamma=GAMMA), gradients)
    muon = steps(momentax.muon(ETA, steps=1, scale="none"), gradients)
    r = muon / updates
    np.testing.assert_allclose(r, np.broadcast_to(r[:, :1, :1], r.shape), rtol=1e-9)
    assert np.all((r >= 1) & (r <= LARGEST + 1e-7))
    assert np.linalg.svd(updates, compute_uv=False).max() <= 1.2024


def test_a_stack_has_one_brake_each_in_the_paper_and_one_in_the_code(gradients):
    stacked = momentax.routing.matrix((1,), (2,), (0,))
    single = {"kernel": gradients["kernel"]}
    pair = {"kernel": jnp.stack([single["kernel"], 100 * single["kernel"]], axis=1)}
    for factory in (momentax.auon, momentax.hybrid_auon):
        for variant in ("paper", "official"):
            alone = steps(factory(ETA, gamma=8.0, variant=variant), single)
            together = steps(factory(ETA, gamma=8.0, variant=variant, routing=stacked), pair)
            assert np.allclose(together[:, 0], alone, rtol=1e-9) == (variant == "paper")


def test_gamma_is_that_of_the_source(gradients):
    for variant, gamma in (("paper", 1.0), ("official", 1.5)):
        default, stated = (steps(momentax.auon(ETA, variant=variant, gamma=g), gradients) for g in (None, gamma))
        np.testing.assert_array_equal(default, stated)
