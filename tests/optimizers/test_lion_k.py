"""Lion-K as constrained optimisation: the bound 1 / lambda, the rate at which it is reached, and its equivalences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax
from momentax import convex

BOXED = [convex.l1(), convex.huber(0.4), convex.dead_zone(0.3), convex.tanh(2.5), convex.relativistic(0.7)]
LAM, STEPS = 2.0, 60


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def rate(count):
    """A schedule, so that the product of (1 - eta lam) is more than a power."""
    return 0.02 + 0.01 * jnp.sin(jnp.asarray(count, float))


def run(tx, w, gradients):
    def step(carry, g):
        w, state = carry
        updates, state = tx.update(g, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    return jax.lax.scan(step, (w, tx.init(w)), gradients)[1]


def excess(w):
    """Distances of lam w from the box, in the max norm and in the Euclidean one."""
    outside = jnp.maximum(jnp.abs(LAM * w) - 1, 0)
    return jnp.stack([jnp.max(outside, axis=-1), jnp.linalg.norm(outside, axis=-1)])


def gradients(seed=0, scale=3.0):
    return scale * jax.random.normal(jax.random.key(seed), (STEPS, 8))


@pytest.mark.parametrize("K", BOXED, ids=lambda K: K.name)
@pytest.mark.parametrize("decay", ["decoupled", "proximal"])
@pytest.mark.parametrize("adversary", [False, True], ids=["random gradients", "outward gradients"])
def test_phase_one_comes_in_at_least_as_fast_as_the_theorem(K, decay, adversary):
    """dist(lam w_t, C) <= prod (1 - eta lam) dist(lam w_0, C), or prod 1 / (1 + eta lam) for the implicit scheme."""
    start = jnp.linspace(-4.0, 4.0, 8)
    g = -100.0 * jnp.tile(jnp.sign(start), (STEPS, 1)) if adversary else gradients()
    path = run(momentax.lion_k(rate, K, weight_decay=LAM, decay=decay), start, g)
    eta = rate(jnp.arange(STEPS))
    factor = jnp.cumprod(1 - eta * LAM if decay == "decoupled" else 1 / (1 + eta * LAM))
    assert jnp.all(excess(path) <= factor[None] * excess(start[None]) + 1e-12)
    if adversary and K.name == "l1":  # the outward sign makes the bound tight
        np.testing.assert_allclose(excess(path)[0], factor * excess(start[None])[0], atol=1e-12)


@pytest.mark.parametrize("K", BOXED, ids=lambda K: K.name)
def test_once_inside_the_bound_always_inside(K):
    path = run(momentax.lion_k(rate, K, weight_decay=LAM), jnp.linspace(-0.5, 0.5, 8), gradients(1))
    assert jnp.max(jnp.abs(path)) <= 1 / LAM + 1e-14
    assert jax.vmap(K.gauge)(LAM * path).max() <= 1 + 1e-14


def test_an_active_bound_is_reached():
    """Lion on a linear loss ends on the corner of the box."""
    g = jnp.tile(jnp.array([1.0, -1.0]), (3000, 1))
    path = run(momentax.lion_k(0.01, weight_decay=LAM), jnp.zeros(2), g)
    np.testing.assert_allclose(path[-1], [-1 / LAM, 1 / LAM], rtol=1e-12)


@pytest.mark.parametrize("K", [*BOXED, convex.quadratic()], ids=lambda K: K.name)
def test_decoupled_is_proximal_with_the_larger_rate(K):
    start = jnp.linspace(-1.0, 1.0, 8)
    explicit = run(momentax.lion_k(rate, K, weight_decay=LAM), start, gradients())
    larger = lambda count: rate(count) / (1 - rate(count) * LAM)  # noqa: E731
    implicit = run(momentax.lion_k(larger, K, weight_decay=LAM, decay="proximal"), start, gradients())
    np.testing.assert_allclose(explicit, implicit, atol=1e-13)


def test_the_quadratic_is_momentum_with_l2():
    """K = |x|^2 / 2 with b1 = b2 is gradient descent along the average, with decoupled decay."""
    start = jnp.linspace(-1.0, 1.0, 8)
    ours = run(momentax.lion_k(0.1, convex.quadratic(), 0.9, 0.9, LAM), start, gradients())
    chain = optax.chain(
        momentax.average_gradients(0.9, debias=False),
        momentax.decays.decoupled(LAM),
        optax.scale_by_learning_rate(0.1),
    )
    np.testing.assert_allclose(ours, run(chain, start, gradients()), rtol=1e-13)


@pytest.mark.parametrize("weight_decay", [None, 0.5])
def test_l1_is_the_lion_of_optax(weight_decay):
    start = jnp.linspace(-1.0, 1.0, 8)
    theirs = run(optax.lion(0.01, weight_decay=weight_decay or 0.0), start, gradients())
    ours = run(momentax.lion_k(0.01, weight_decay=weight_decay), start, gradients())
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_lion_solves_the_box_constrained_problem():
    """With a decaying rate the end point is the minimiser of f over |w| <= 1 / lam, not of f."""
    key = jax.random.key(3)
    root = jax.random.normal(key, (4, 4))
    hessian, linear = root @ root.T + jnp.eye(4), 3 * jax.random.normal(jax.random.fold_in(key, 1), (4,))
    steps = 8000
    tx = momentax.lion_k(optax.cosine_decay_schedule(0.02, steps), weight_decay=LAM)

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(hessian @ w - linear, state, w)
        return (optax.apply_updates(w, updates), state), None

    (w, _), _ = jax.lax.scan(step, (jnp.zeros(4), tx.init(jnp.zeros(4))), length=steps)

    def project(x, _):  # projected gradient descent: an independent solver of the same problem
        return jnp.clip(x - (hessian @ x - linear) / jnp.linalg.norm(hessian, 2), -1 / LAM, 1 / LAM), None

    solution, _ = jax.lax.scan(project, jnp.zeros(4), length=5000)
    assert jnp.sum(jnp.abs(solution) > 0.999 / LAM) >= 1
    np.testing.assert_allclose(w, solution, atol=1e-5)


def test_convex_must_be_a_convex_function():
    with pytest.raises(TypeError, match="scale_by_lion_k.*l1"):
        momentax.lion_k(0.1, jnp.sign)
