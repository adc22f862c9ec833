"""FISMO's theorems: factors keep their traces, and the whitened polar factor is steepest descent under their norm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax
from momentax import routing

STACK = routing.matrix((1,), (2,), (0,))
K, IN, OUT = 3, 4, 6


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def gs():
    """Gradients of five steps: stacks of three matrices (in, out), columns of very different size."""
    sizes = jnp.logspace(0, -1.5, OUT)[None, None, None]
    return jax.random.normal(jax.random.key(0), (5, K, IN, OUT)) * sizes


def run(tx, gs):
    """The updates of all steps, and the factors P, Q after each, for one leaf that is a stack."""

    def step(state, g):
        u, state = tx.update({"w": g}, state)
        return state, (u["w"], state.factors)

    start = tx.init({"w": gs[0]})
    _, (updates, factors) = jax.jit(lambda gs: jax.lax.scan(step, start, gs))(gs)
    return np.asarray(updates), *unpacked(factors)


def unpacked(factors, ins=IN, outs=OUT):
    p, q = np.split(np.asarray(factors), [K * outs * outs], axis=-1)
    return p.reshape(*p.shape[:-1], K, outs, outs), q.reshape(*q.shape[:-1], K, ins, ins)


def power(a, exponent):
    """Of a symmetric matrix, by its eigenvalues, as numpy finds them."""
    w, v = np.linalg.eigh(a)
    return (v * w[..., None, :] ** exponent) @ np.swapaxes(v, -1, -2)


def swept(gs, gamma=0.95, mu=0.1):
    """(1), (2) written out in the orientation of the paper: P and Q after the last step, for one matrix (in, out)."""
    ins, outs = gs[0].shape
    p, q = np.eye(outs), np.eye(ins)
    for x in np.asarray(gs):
        g = x.T
        p = gamma * p + (1 - gamma) * (g @ np.linalg.inv(q) @ g.T / ins + mu * np.trace(p) / outs * np.eye(outs))
        p *= outs / np.trace(p)
        q = gamma * q + (1 - gamma) * (g.T @ np.linalg.inv(p) @ g / outs + mu * np.trace(q) / ins * np.eye(ins))
        q *= ins / np.trace(q)
    return p, q


@pytest.mark.parametrize("options", [dict(), dict(normalize_stats=True, b2=0.5, damping=0.01)])
def test_factors_are_positive_definite_and_keep_their_traces(gs, options):
    _, p, q = run(momentax.whiten_by_fisher(routing=STACK, **options), gs)
    for factor in (p, q):
        np.testing.assert_allclose(np.trace(factor, axis1=-2, axis2=-1), factor.shape[-1], rtol=1e-13)
        np.testing.assert_array_equal(factor, np.swapaxes(factor, -1, -2))
        assert np.linalg.eigvalsh(factor).min() > 0


def test_sides_and_order_of_the_sweep(gs):
    updates, p, q = run(momentax.whiten_by_fisher(routing=STACK), gs)
    for k in range(K):
        wanted = swept(gs[:, k])
        np.testing.assert_allclose(p[-1, k], wanted[0], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(q[-1, k], wanted[1], rtol=1e-12, atol=1e-13)
        natural = np.linalg.solve(wanted[1], np.linalg.solve(wanted[0], gs[-1, k].T).T)  # Q^-1 X P^-1, X (in, out)
        np.testing.assert_allclose(updates[-1, k], natural, rtol=1e-11, atol=1e-13)


def test_the_whitened_polar_factor_is_steepest_descent(gs):
    """<G, U> is the nuclear norm of the whitened gradient, and the bound on |P^1/2 U Q^1/2|_2 is attained."""
    inner = momentax.orthogonalize("exact", routing=STACK)
    updates, p, q = run(momentax.whiten_by_fisher(inner, b2=0.5, normalize_stats=True, routing=STACK), gs)
    whitened = power(q, -0.5) @ np.asarray(gs) @ power(p, -0.5)
    nuclear = np.linalg.svd(whitened, compute_uv=False).sum(-1)
    np.testing.assert_allclose(np.sum(np.asarray(gs) * updates, axis=(-2, -1)), nuclear, rtol=1e-10)
    lengths = np.linalg.svd(power(q, 0.5) @ updates @ power(p, 0.5), compute_uv=False)
    np.testing.assert_allclose(lengths, 1, rtol=1e-10)
    assert np.linalg.cond(updates[-1]).min() > 2  # P and Q are not the identity


def test_with_a_decay_of_one_nothing_is_whitened(gs):
    updates, p, _ = run(momentax.whiten_by_fisher(b2=1.0, routing=STACK), gs)
    np.testing.assert_allclose(updates, gs, rtol=1e-14)
    np.testing.assert_array_equal(p, np.broadcast_to(np.eye(OUT), p.shape))


def test_normalized_statistics_do_not_see_the_size_of_gradients(gs):
    tx = momentax.whiten_by_fisher(normalize_stats=True, routing=STACK)
    ours, p, _ = run(tx, gs)
    tiny, p_tiny, _ = run(tx, 1e-200 * gs)  # squares are zero
    np.testing.assert_allclose(p_tiny, p, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(1e200 * tiny, ours, rtol=1e-12)
    literal = momentax.whiten_by_fisher(routing=STACK)
    _, p, _ = run(literal, 1e-3 * gs)
    np.testing.assert_allclose(p, np.broadcast_to(np.eye(OUT), p.shape), atol=1e-5)  # swamped by the damping


def test_roots_are_kept_between_their_updates(gs):
    every, p, q = run(momentax.whiten_by_fisher(routing=STACK), gs)
    seldom, p_seldom, _ = run(momentax.whiten_by_fisher(update_every=2, routing=STACK), gs)
    np.testing.assert_allclose(seldom[0], every[0], rtol=1e-12)
    stale = power(q[0], -1) @ np.asarray(gs[1]) @ power(p[0], -1)
    np.testing.assert_allclose(seldom[1], stale, rtol=1e-11, atol=1e-13)
    assert np.abs(p_seldom[1] - p_seldom[0]).max() > 1e-3  # factors move in every step


def test_a_long_side_is_left_alone(gs):
    tx = momentax.whiten_by_fisher(max_dim=IN, routing=STACK)
    state = tx.init({"w": gs[0]})
    updates, state = jax.jit(tx.update)({"w": gs[0]}, state)
    assert state.factors.shape == (K * (1 + IN * IN),)
    np.testing.assert_array_equal(state.factors[:K], 1)
    x = np.asarray(gs[0])
    q = 0.95 * np.eye(IN) + 0.05 * (x @ np.swapaxes(x, 1, 2) / OUT + 0.1 * np.eye(IN))
    q *= IN / np.trace(q, axis1=1, axis2=2)[:, None, None]
    np.testing.assert_allclose(updates["w"], np.linalg.solve(q, x), rtol=1e-11, atol=1e-13)


def test_products_alone_find_the_same_roots(gs):
    by_eigenvalues, *_ = run(momentax.whiten_by_fisher(routing=STACK), gs[:2])
    by_products, *_ = run(momentax.whiten_by_fisher(root="newton", routing=STACK), gs[:2])
    np.testing.assert_allclose(by_products, by_eigenvalues, rtol=1e-5)  # the floor of 1e-8 is added, not taken


def test_axes_are_what_routing_says(gs):
    """The transpose with the transposed rule, a convolution kernel, and matrices side by side, give the same steps."""
    g = gs[0]
    fused = dataclasses.replace(routing.matrix((0,), (1,)), blocks=K)
    trees = {
        "stack": (g, STACK),
        "transposed": (g.transpose(2, 0, 1), routing.matrix((2,), (0,), (1,))),
        "convolution": (g.reshape(K, 2, 2, OUT), routing.matrix((1, 2), (3,), (0,))),
        "fused": (g.transpose(1, 0, 2).reshape(IN, K * OUT), fused),
    }
    rules = {name: rule for name, (_, rule) in trees.items()}
    grads = {name: leaf for name, (leaf, _) in trees.items()}
    tx = momentax.whiten_by_fisher(momentax.average_gradients(), routing=rules)
    updates, _ = jax.jit(tx.update)(grads, tx.init(grads))
    stack = updates["stack"]
    np.testing.assert_allclose(updates["transposed"], stack.transpose(2, 0, 1), rtol=1e-12)
    np.testing.assert_allclose(updates["convolution"], stack.reshape(K, 2, 2, OUT), rtol=1e-12)
    np.testing.assert_allclose(updates["fused"].reshape(IN, K, OUT).transpose(1, 0, 2), stack, rtol=1e-12)


def test_what_is_not_finite_stays_in_its_matrix_and_zero_gives_zero(gs):
    tx = momentax.whiten_by_fisher(momentax.orthogonalize("exact", routing=STACK), routing=STACK)
    clean, _, _ = run(tx, gs)
    broken, p, _ = run(tx, gs.at[0, 1, 2, 3].set(jnp.nan))
    assert np.isnan(broken[:, 1]).all() and np.isnan(p[:, 1]).all()
    np.testing.assert_array_equal(broken[:, [0, 2]], clean[:, [0, 2]])
    zero, p, q = run(tx, gs.at[:, 1].set(0.0))
    np.testing.assert_array_equal(zero[:, 1], 0)
    np.testing.assert_allclose(p[-1, 1], np.eye(OUT), atol=1e-15)


def test_factors_return_to_the_identity_without_gradients(gs):
    """Zero gradients leave the damping alone, which draws P and Q to the identity at the rate of the average."""
    drift = jnp.concatenate([gs[:1], jnp.zeros((30, *gs.shape[1:]))])
    _, p, _ = run(momentax.whiten_by_fisher(b2=0.5, damping=1.0, normalize_stats=True, routing=STACK), drift)
    distance = np.abs(p - np.eye(OUT)).max(axis=(-2, -1))
    assert (distance[0] > 0.1).all()
    np.testing.assert_allclose(distance[1:11], distance[0] * 0.5 ** np.arange(1, 11)[:, None], rtol=1e-9)


def test_a_vector_is_refused_by_name():
    with pytest.raises(ValueError, match=r"whiten_by_fisher: leaf 'bias' \(3,\) .*partition_by_rule"):
        momentax.whiten_by_fisher().init({"bias": jnp.ones(3)})
