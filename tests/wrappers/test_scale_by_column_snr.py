"""NAMO-D: ratios of single inputs, how far apart they may lie, and inputs without gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax
from momentax import routing

ONES = optax.stateless(lambda updates, params: jax.tree.map(jnp.ones_like, updates))  # so that u shows alpha
MATRIX = routing.matrix((0,), (1,))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def run(tx, gradients, w=None):
    """The updates of all steps, w unchanged."""

    def step(state, g):
        u, state = tx.update(g, state, w)
        return state, u

    return jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[1])(gradients)


def adapted(inner, **options):
    return momentax.scale_by_column_snr(inner, **{"scale": "none", "routing": MATRIX, **options})


@pytest.fixture
def gradients():
    """Of a matrix (5, 4) whose first input always sees the same gradient, the last one noise, the others a mixture."""
    trust = jnp.linspace(1, 0, 5)[None, :, None]
    keys = jax.random.split(jax.random.key(0))
    return trust * jax.random.normal(keys[0], (1, 5, 4)) + (1 - trust) * jax.random.normal(keys[1], (40, 5, 4))


def test_unclamped_ratios_are_those_of_single_inputs(gradients):
    """Each input is what a matrix of one input is to NAMO."""
    together = run(adapted(ONES, clamp=None), gradients)
    namo = momentax.scale_by_norm_snr(ONES, scale="none", routing=MATRIX)
    for row in range(5):
        np.testing.assert_allclose(together[:, row : row + 1], run(namo, gradients[:, row : row + 1]), rtol=1e-12)
    assert together[-1, 0, 0] > 3 * together[-1, -1, 0]


def test_the_clamp_bounds_ratios_and_condition(gradients):
    free = run(adapted(ONES, clamp=None), gradients)[:, :, :1]
    o = jax.random.normal(jax.random.key(2), (5, 4))
    fixed = optax.stateless(lambda updates, params: jax.tree.map(lambda u: o, updates))
    for c in (0.75, 0.3):
        mean = free.mean(axis=1, keepdims=True)
        clamped = np.clip(free, c * mean, mean / c)
        assert not np.allclose(clamped[-1], free[-1])
        updates = run(adapted(fixed, clamp=c), gradients)
        np.testing.assert_allclose(updates, clamped * o[None], rtol=1e-10)
        assert np.linalg.cond(updates).max() <= np.linalg.cond(o) / c**2
    alike = run(adapted(ONES, clamp=1.0), gradients)
    np.testing.assert_allclose(alike, np.broadcast_to(mean, alike.shape), rtol=1e-12)


def test_outputs_are_the_inputs_of_the_transpose(gradients):
    inner = momentax.orthogonalize(steps=1, routing=MATRIX)
    turned = run(adapted(inner, axis="output"), gradients.mT)
    np.testing.assert_allclose(turned.mT, run(adapted(inner), gradients), rtol=1e-9)


def test_spatial_axes_of_a_convolution_are_inputs():
    g = jax.random.normal(jax.random.key(3), (4, 2, 3, 5, 7))  # four steps, (2, 3, 5) inputs, 7 outputs
    folded = run(adapted(ONES), g.reshape(4, 30, 7))
    kernel = run(adapted(ONES, routing=routing.matrix((0, 1, 2), (3,))), g)
    np.testing.assert_allclose(kernel.reshape(folded.shape), folded, rtol=1e-12)


def test_a_dead_input_decays_and_nothing_more(gradients):
    w = jax.random.normal(jax.random.key(4), (5, 4))
    inner = momentax.orthogonalize(steps=2, routing=MATRIX)
    dead = gradients.at[:, 1].set(0.0)
    updates = run(adapted(inner, weight_decay=0.1, clamp=0.4, eps=0.0), dead, w)
    ratios = run(adapted(ONES, clamp=None, eps=0.0), dead)[:, :, :1].mean(axis=1)
    np.testing.assert_allclose(updates[:, 1], 0.4 * ratios * 0.1 * w[1:2], rtol=1e-10)
    assert np.all(np.isfinite(updates))
    np.testing.assert_array_equal(run(adapted(inner, weight_decay=0.1), 0 * gradients[:2], w), 0)


def test_an_input_that_is_not_finite_does_not_move_the_mean(gradients):
    broken = run(adapted(ONES), gradients.at[:, 1].set(jnp.nan))
    keep = np.array([0, 2, 3, 4])
    assert np.all(np.isnan(broken[:, 1]))
    np.testing.assert_allclose(broken[:, keep], run(adapted(ONES), gradients[:, keep]), rtol=1e-12)


def test_the_terminal_never_turns_a_weight_round(gradients):
    """A decay above 1 stops at zero here, and goes through it in NAMO, as in the code."""
    w = jax.random.normal(jax.random.key(4), (5, 4))
    options = dict(weight_decay=1.4, learning_rate=1e3, routing=MATRIX)
    [update] = run(momentax.scale_by_column_snr(ONES, **options), gradients[:1], w)
    np.testing.assert_allclose(w + update, -1.0, rtol=1e-12)
    [update] = run(momentax.scale_by_norm_snr(ONES, **options), gradients[:1], w)
    np.testing.assert_allclose(w + update, -0.4 * w - 1, rtol=1e-12)
