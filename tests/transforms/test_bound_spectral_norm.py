"""Spectral control: no step exceeds its norm, whatever the table and the input; tangential steps leave s1 alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax
from momentax import routing

STACK = routing.matrix((1,), (2,), (0,))
K, IN, OUT = 3, 6, 4
SHAPE = np.sqrt(OUT / IN)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def n():
    """Well conditioned, with singular values over six decades, and of rank one."""
    plain, *_ = jax.random.normal(jax.random.key(0), (2, IN, OUT))
    u, _, v = jnp.linalg.svd(plain, full_matrices=False)
    return jnp.stack([plain, u * jnp.logspace(0, -6, OUT)[None] @ v, u[:, :1] * v[:1]])


@pytest.fixture
def w():
    return jax.random.normal(jax.random.key(1), (K, IN, OUT))


def spectrum(x):
    return np.linalg.svd(np.asarray(x), compute_uv=False)


def steps_of(tx, n, w, steps=1):
    """The last of some updates at the same weights: power iteration converges."""

    def step(state, _):
        u, state = tx.update({"w": n}, state, {"w": w})
        return state, u["w"]

    return np.asarray(jax.jit(lambda: jax.lax.scan(step, tx.init({"w": w}), length=steps)[1][-1])())


@pytest.mark.parametrize(
    ("method", "steps"), [("muon", 5), ("polar_express", 5), ("polar_express", 6), ("you", 5), ("exact", 1)]
)
def test_no_table_exceeds_the_norm(method, steps):
    smallest = jnp.logspace(-7, 0, 400)
    pairs = jax.vmap(lambda s: jnp.diag(jnp.array([1.0, 0.0])) + s * jnp.diag(jnp.array([0.0, 1.0])))(smallest)
    tx = momentax.bound_spectral_norm(method=method, steps=steps, routing=STACK)
    found = spectrum(tx.update({"w": pairs}, tx.init({"w": pairs}))[0]["w"])
    assert found.max() < 1 + 1e-12
    assert found.max() > 0.9  # and is not far below


def test_half_precision_exceeds_the_norm_by_its_rounding(n):
    """Without a safety factor Polar Express would turn a matrix of rank one into one hundreds of times too long."""
    wide = jax.random.normal(jax.random.key(2), (K, 1, 200)) * jax.random.normal(jax.random.key(3), (K, 64, 1))
    tx = momentax.bound_spectral_norm(compute_dtype=jnp.bfloat16, routing=STACK)
    for x in (n, wide):
        x = x.astype(jnp.float32)
        u, _ = jax.jit(tx.update)({"w": x}, tx.init({"w": x}))
        largest = spectrum(u["w"].astype(float))[:, 0] / np.sqrt(x.shape[2] / x.shape[1])
        assert 0.9 < largest.min() and largest.max() < 1.01


def test_the_norm_is_that_of_the_aspect_ratio_and_kappa(n, w):
    tx = momentax.bound_spectral_norm(lambda count: 3.0 + count, method="exact", routing=STACK)
    u = steps_of(tx, n, w, steps=2)
    np.testing.assert_allclose(spectrum(u)[0], 4.0 * SHAPE, rtol=1e-12)
    turned = momentax.bound_spectral_norm(method="exact", routing=routing.matrix((2,), (1,), (0,)))
    np.testing.assert_allclose(spectrum(steps_of(turned, n, w))[0], 1 / SHAPE, rtol=1e-12)


@pytest.mark.parametrize("method", ["exact", "polar_express"])
def test_tangential_steps_have_nothing_along_the_top_pair(n, w, method):
    u = steps_of(momentax.bound_spectral_norm(method=method, tangent=True, routing=STACK), n, w, steps=10) / SHAPE
    left, s, right = np.linalg.svd(np.asarray(w))
    top = left[:, :, 0, None] * right[:, None, 0, :]
    np.testing.assert_allclose(np.sum(u * top, axis=(1, 2)), 0, atol=1e-6)
    assert spectrum(u).max() < 1 + 1e-12
    # the largest <N, O> there is: the least nuclear norm of N + nu u v'
    lines = np.asarray(n)[:, None] + np.linspace(-3, 3, 2001)[None, :, None, None] * top[:, None]
    best = spectrum(lines * (1 / np.linalg.norm(n, axis=(1, 2)))[:, None, None, None]).sum(-1).min(1)
    reached = np.sum(u * np.asarray(n), axis=(1, 2)) / np.linalg.norm(n, axis=(1, 2))
    assert (reached <= best + 1e-6).all()
    if method == "exact":
        np.testing.assert_allclose(reached, best, rtol=0.01)


def test_the_largest_singular_value_moves_to_second_order(n, w):
    u = steps_of(momentax.bound_spectral_norm(method="exact", tangent=True, routing=STACK), n, w, steps=10)
    plain = steps_of(momentax.bound_spectral_norm(method="exact", routing=STACK), n, w)
    drift = {eta: np.abs(spectrum(w - eta * u)[:, 0] - spectrum(w)[:, 0]) for eta in (1e-2, 1e-3)}
    np.testing.assert_allclose(drift[1e-2] / drift[1e-3], 100, rtol=0.1)
    first_order = np.abs(spectrum(w - 1e-3 * plain)[:, 0] - spectrum(w)[:, 0])
    assert (first_order[:2] > 10 * drift[1e-3][:2]).all()


def test_without_a_gap_the_plain_factor_is_taken(n):
    square = jnp.eye(IN, OUT)[None] * jnp.ones((K, 1, 1))  # all singular values are the same
    for w in (square, jnp.zeros((K, IN, OUT))):
        tangent = steps_of(momentax.bound_spectral_norm(tangent=True, routing=STACK), n, w)
        np.testing.assert_allclose(tangent, steps_of(momentax.bound_spectral_norm(routing=STACK), n, w), atol=1e-12)


@pytest.mark.parametrize("tangent", [False, True])
def test_stacks_and_blocks_are_single_matrices(n, w, tangent):
    tx = momentax.bound_spectral_norm(tangent=tangent, steps=2, routing=STACK)
    together = steps_of(tx, n, w)
    trees = [{str(k): x[k] for k in range(K)} for x in (n, w)]
    single = momentax.bound_spectral_norm(tangent=tangent, steps=2, routing=routing.matrix((0,), (1,)))
    apart, _ = jax.jit(single.update)(trees[0], single.init(trees[1]), trees[1])
    np.testing.assert_allclose(together, np.stack([apart[str(k)] for k in range(K)]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tangent", [False, True])
def test_what_is_not_finite_stays_in_its_matrix_and_zero_gives_zero(n, w, tangent):
    tx = momentax.bound_spectral_norm(tangent=tangent, steps=2, routing=STACK)
    clean = steps_of(tx, n, w)
    broken = steps_of(tx, n.at[0, 1, 2].set(jnp.nan), w.at[1, 0, 0].set(jnp.inf))
    assert np.isnan(broken[0]).all() and np.isfinite(broken[1]).all()
    np.testing.assert_array_equal(broken[2], clean[2])
    np.testing.assert_array_equal(steps_of(tx, n.at[1].set(0.0), w)[1], 0)


def test_a_momentum_along_the_top_pair_alone_gives_no_tangential_step(w):
    left, s, right = jnp.linalg.svd(w)
    n = 5e-9 * left[:, :, :1] * right[:, :1, :]
    u = steps_of(momentax.bound_spectral_norm(tangent=True, method="exact", routing=STACK), n, w, steps=12)
    np.testing.assert_allclose(u, 0, atol=1e-12)


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="bound_spectral_norm: the table `method` grows without bound"):
        momentax.bound_spectral_norm(method=((1e9, 1e9, 1e9),), steps=40)
    with pytest.raises(ValueError, match=r"bound_spectral_norm needs the parameters"):
        tx = momentax.bound_spectral_norm(tangent=True)
        tx.update({"kernel": jnp.ones((2, 2))}, tx.init({"kernel": jnp.ones((2, 2))}))
