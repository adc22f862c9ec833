"""AdamP's theorems: norms grow as predicted, directions do not change, and the gate decides as the paper says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax
from momentax import routing

B1, RATE, STEPS = 0.9, 0.05, 30


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def rayleigh(w):
    """Scale-invariant: <w, grad> = 0 everywhere."""
    curvature = jnp.linspace(0.1, 2.0, w.size).reshape(w.shape)
    return jnp.sum(curvature * w * w) / jnp.sum(w * w)


def run(tx, w, steps=STEPS):
    """All weights, and all directions (updates before the learning rate), from `w` on."""

    def step(carry, _):
        w, state = carry
        u, state = tx.update(jax.grad(rayleigh)(w), state, w)
        return (w - RATE * u, state), (w, u)

    (last, _), (path, directions) = jax.lax.scan(step, (w, tx.init(w)), length=steps)
    return jnp.concatenate([path, last[None]]), directions


def squared_norms(path):
    return jnp.sum(path * path, axis=(1, 2))


@pytest.fixture
def start():
    return jax.random.normal(jax.random.key(0), (4, 6))


def test_plain_descent_adds_the_squared_step(start):
    path, directions = run(optax.identity(), start)
    grown = jnp.sum(start**2) + jnp.cumsum(RATE**2 * squared_norms(directions))
    np.testing.assert_allclose(squared_norms(path)[1:], grown, rtol=1e-13)


def test_momentum_adds_the_cross_terms(start):
    path, p = run(momentax.heavy_ball(B1), start)
    squares = np.asarray(squared_norms(p))
    growth = [RATE**2 * (squares[t] + 2 * sum(B1 ** (t - k) * squares[k] for k in range(t))) for t in range(STEPS)]
    np.testing.assert_allclose(np.diff(squared_norms(path)), growth, rtol=1e-11)


def test_projected_momentum_adds_only_the_tangential_step(start):
    tx = momentax.project_radial(momentax.heavy_ball(B1), delta=None, views=("layer",), eps=0.0)
    path, directions = run(tx, start)
    np.testing.assert_allclose(np.diff(squared_norms(path)), RATE**2 * squared_norms(directions), rtol=1e-11)
    np.testing.assert_allclose(jnp.sum(path[:-1] * directions, axis=(1, 2)), 0, atol=1e-13)


def test_projection_keeps_the_great_circle(start):
    _, p = run(momentax.heavy_ball(B1), start)
    u, w = p[-1], start
    projected, _ = (tx := momentax.project_radial(delta=None, views=("layer",), eps=0.0)).update(u, tx.init(w), w)
    plane = jnp.stack([w.ravel(), (w - RATE * u).ravel()], axis=1)
    point = (w - RATE * projected).ravel()
    residual = point - plane @ jnp.linalg.lstsq(plane, point)[0]
    assert jnp.linalg.norm(residual) < 1e-13


def gated(g, u, w, **options):
    """The projected direction, with g as raw gradient and u as what an inner transformation makes of it."""
    inner = optax.GradientTransformation(lambda p: optax.EmptyState(), lambda g, s, p=None: (u, s))
    tx = momentax.project_radial(inner, routing=routing.matrix((0,), (1,)), **options)
    return tx.update(g, tx.init(w), w)[0]


def test_the_gate_opens_below_delta_over_root_d_only(start):
    rows = 4  # (in, out): a channel is a column of 4 entries
    w = start / jnp.linalg.norm(start, axis=0, keepdims=True)
    tangent = start[::-1] - w * jnp.sum(w * start[::-1], axis=0, keepdims=True)
    tangent = tangent / jnp.linalg.norm(tangent, axis=0, keepdims=True)
    u = start**2
    for cosine, opens in ((0.099 / rows**0.5, True), (0.101 / rows**0.5, False)):
        # one channel alone over the threshold closes the channel view; the layer view is closed by all of them
        g = tangent.at[:, 2].set(cosine * w[:, 2] + (1 - cosine**2) ** 0.5 * tangent[:, 2])
        channel = gated(g, u, w, views=("channel",), eps=0.0)
        changed = not np.allclose(channel, u)
        assert changed == opens
        if opens:
            np.testing.assert_allclose(jnp.sum(channel * w, axis=0), 0, atol=1e-13)


def test_decay_drops_where_a_projection_was_made(start):
    w, u = start, start**2
    radial = gated(w, u, w, weight_decay=0.5, wd_ratio=0.1)
    np.testing.assert_allclose(radial, u + 0.5 * w)
    free = gated(jnp.zeros_like(w), u, w, weight_decay=0.5, wd_ratio=0.1)
    np.testing.assert_allclose(free, gated(jnp.zeros_like(w), u, w) + 0.05 * w)


def test_a_layer_is_projected_once_when_only_the_layer_view_passes(start):
    w = start
    signs = jnp.where(jnp.arange(6) % 2 == 0, 1.0, -1.0)[None]
    norms = jnp.linalg.norm(w, axis=0, keepdims=True)
    g = w * signs / norms**2  # radial in every column, orthogonal to the layer as a whole
    np.testing.assert_allclose(jnp.sum(g * w), 0, atol=1e-12)
    u = start**2
    h = w / jnp.linalg.norm(w)
    np.testing.assert_allclose(gated(g, u, w, eps=0.0), u - h * jnp.sum(h * u), rtol=1e-12)


def test_layout_is_what_routing_says(start):
    """A kernel (in, out) and its transpose (out, in) give the same step when routing states the layout."""
    flax, torch = momentax.adamp(0.1), momentax.adamp(0.1, routing=routing.matrix((1,), (0,)))
    g = {"kernel": jax.grad(rayleigh)(start)}
    w = {"kernel": start}
    a, _ = flax.update(g, flax.init(w), w)
    gt, wt = jax.tree.map(jnp.transpose, (g, w))
    b, _ = torch.update(gt, torch.init(wt), wt)
    np.testing.assert_allclose(a["kernel"], b["kernel"].T, rtol=1e-12)


def test_stacked_layers_are_projected_one_by_one():
    w = jax.random.normal(jax.random.key(1), (3, 4, 6))
    g = jax.random.normal(jax.random.key(2), (3, 4, 6))
    radial = jnp.sum(g[0] * w[0], 0, keepdims=True) / jnp.sum(w[0] ** 2, 0, keepdims=True)
    g = g.at[0].add(-w[0] * radial)  # only the first layer passes
    tx = momentax.adamp(0.1, weight_decay=0.3, routing=routing.flax(stacked="blocks"))
    params = {"blocks": {"dense": {"kernel": w}}}
    stacked, _ = tx.update({"blocks": {"dense": {"kernel": g}}}, tx.init(params), params)
    single = momentax.adamp(0.1, weight_decay=0.3)
    for layer in range(3):
        alone, _ = single.update({"kernel": g[layer]}, single.init({"kernel": w[layer]}), {"kernel": w[layer]})
        np.testing.assert_allclose(stacked["blocks"]["dense"]["kernel"][layer], alone["kernel"], rtol=1e-12)


def test_vectors_are_never_projected():
    params = {"bias": jnp.ones((3, 4)), "scale": jnp.ones(4)}  # a stacked bias has rank 2 and is a vector still
    tx = momentax.project_radial(delta=None)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["bias"], params["bias"])


def test_official_sgdp_remembers_the_projected_buffer(start):
    w = {"kernel": start}
    g = {"kernel": jax.grad(rayleigh)(start)}
    for variant, same in (("paper", False), ("official", True)):
        tx = momentax.sgdp(0.1, b1=0.9, variant=variant)
        state = tx.init(w)
        _, state = tx.update(g, state, w)
        turned = start[::-1]  # its gradient passes the test, but the buffer is not tangential to it
        updates, state = tx.update({"kernel": jax.grad(rayleigh)(turned)}, state, {"kernel": turned})
        stored = state[0].inner.mu["kernel"]
        assert np.allclose(-0.1 * stored, updates["kernel"], rtol=1e-12) == same


def test_ambiguous_kernel_is_refused_by_name_with_the_remedy():
    params = {"mixer": {"kernel": jnp.ones((2, 3, 4))}}
    with pytest.raises(ValueError, match=r"project_radial.*mixer/kernel.*routing=.*matrix"):
        momentax.adamp(0.1).init(params)


def test_project_buffer_needs_a_buffer():
    with pytest.raises(TypeError, match="project_buffer.*heavy_ball"):
        momentax.project_radial(optax.identity(), project_buffer=True).init({"kernel": jnp.ones((2, 2))})
