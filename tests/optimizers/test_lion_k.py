"""Lion-K as constrained optimisation: the bound 1 / lambda, the rate at which it is reached, and its equivalences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from convex.functions import BOUNDED, FUNCTIONS, NORMS, name

import momentax
from momentax import convex, routing

LAM, STEPS = 2.0, 60
START = np.linspace(-4.0, 4.0, 8).reshape(2, 4)  # of NumPy: there is no float64 in JAX before the tests start
ITERATED = convex.nuclear(steps=3)  # its subgradient is in the dual ball, which is all that phase I asks for


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


def gradients(seed=0, scale=3.0):
    return scale * jax.random.normal(jax.random.key(seed), (STEPS, 2, 4))


def nearest_in_the_spectral_ball(y):
    u, s, v_t = jnp.linalg.svd(y, full_matrices=False)
    return u @ (jnp.minimum(s, 1)[:, None] * v_t)


# The nearest point of the constraint set, where it has a closed form. The other functions have their values in a box.
NEAREST = {
    "l2": lambda y: y / jnp.maximum(jnp.linalg.norm(y), 1),
    "l2(scope='global')": lambda y: y / jnp.maximum(jnp.linalg.norm(y), 1),
    "row_norm": lambda y: y / jnp.maximum(jnp.linalg.norm(y, axis=0, keepdims=True), 1),
    "nuclear": nearest_in_the_spectral_ball,
    "nuclear(steps=3)": nearest_in_the_spectral_ball,
    **{K.name: lambda y: jnp.clip(y, -1, 1) for K in BOUNDED if K not in NORMS or K.name == "l1"},
}


def distances(K, w):
    """How far lam w is from the constraint set: in the dual norm, and in the Euclidean one where it is known."""

    def of_one(y):
        project = NEAREST.get(K.name)
        return jnp.maximum(K.gauge(y) - 1, 0), jnp.linalg.norm(y - project(y)) if project else 0.0

    return jnp.stack(jax.vmap(of_one)(LAM * w))


@pytest.mark.parametrize("K", [*BOUNDED, ITERATED], ids=name)
@pytest.mark.parametrize("decay", ["decoupled", "proximal"])
def test_phase_one_comes_in_at_least_as_fast_as_the_theorem(K, decay):
    """dist(lam w_t, C) <= prod (1 - eta lam) dist(lam w_0, C), or prod 1 / (1 + eta lam) for the implicit scheme,
    whatever the gradients; those that push outward along a norming functional make the bound of a norm tight."""
    outward = -100.0 * jnp.tile(jax.grad(K.gauge)(START), (STEPS, 1, 1))
    tx = momentax.lion_k(rate, K, weight_decay=LAM, decay=decay)
    eta = rate(jnp.arange(STEPS))
    factor = jnp.cumprod(1 - eta * LAM if decay == "decoupled" else 1 / (1 + eta * LAM))

    @jax.jit
    @jax.vmap
    def slack(g):
        return factor[None] * distances(K, START[None]) - distances(K, run(tx, START, g))

    slacks = slack(jnp.stack([gradients(), outward]))
    assert jnp.all(slacks >= -1e-12)
    if K in NORMS:
        np.testing.assert_allclose(slacks[1, 0], 0, atol=1e-12)


@pytest.mark.parametrize("K", [*BOUNDED, ITERATED], ids=name)
def test_once_inside_the_bound_always_inside(K):
    inside = jnp.asarray(0.99 * START) / K.gauge(LAM * START)
    path = run(momentax.lion_k(rate, K, weight_decay=LAM), inside, gradients(1))
    assert jax.vmap(K.gauge)(LAM * path).max() <= 1 + 1e-14


@pytest.mark.parametrize("K", NORMS, ids=name)
def test_an_active_bound_is_reached(K):
    """A linear loss <g, w> ends at its minimiser over the dual ball of radius 1 / lam: -dK(g) / lam. With the nuclear
    norm every singular value is then 1 / lam, with l1 every entry."""
    g = jax.random.normal(jax.random.key(4), (2, 4))
    path = run(momentax.lion_k(0.05, K, weight_decay=LAM), jnp.zeros((2, 4)), jnp.tile(g, (300, 1, 1)))
    np.testing.assert_allclose(path[-1], -K.subgradient(g) / LAM, atol=1e-13)
    np.testing.assert_allclose([K.gauge(path[-1]), jnp.sum(g * path[-1])], [1 / LAM, -K.value(g) / LAM], rtol=1e-12)


@pytest.mark.parametrize("K", FUNCTIONS, ids=name)
def test_phase_two_descends_as_fast_as_the_theorem(K):
    """The discrete Lyapunov bound for the implicit scheme with step eps, f L-smooth, in the signs of the paper (m its
    momentum, minus ours), for b1 < b2 and lam x in C:

        n = b1 m - (1 - b1) g,   m+ = b2 m - (1 - b2) g,   V = dK(n) - lam x+ = (x+ - x) / eps
        H(x, m) = f(x) + K*(lam x) / lam + kappa (K*(lam x) + K(m) - lam <m, x>)
        H(x+, m+) - H(x, m) <= -eps (1 + kappa lam) D1 - kappa (1 - b2) / (b2 - b1) D2 + (L eps^2 / 2) |V|^2

    kappa = eps b1 / (eps lam (1 - b1) + 1 - b2); D1 = <n - dK*(lam x+), V> >= 0 is dropped where dK* is set-valued,
    which it is for norms; D2 = <n - m+, dK(n) - dK(m+)> >= 0. H itself need not fall at every step.
    """
    eps, b1, b2 = 0.02, 0.9, 0.95
    kappa = eps * b1 / (eps * LAM * (1 - b1) + 1 - b2)
    root = jax.random.normal(jax.random.key(5), (8, 8))
    hessian, linear = root @ root.T / 8 + 0.1 * jnp.eye(8), 2 * jax.random.normal(jax.random.key(6), (8,))
    smoothness = jnp.linalg.norm(hessian, 2)
    tx = momentax.lion_k(eps, K, b1, b2, LAM, decay="proximal")

    def f(x):
        return x.ravel() @ hessian @ x.ravel() / 2 - linear @ x.ravel()

    def lyapunov(x, m):
        penalty = K.conjugate(LAM * x)
        return f(x) + penalty / LAM + kappa * (penalty + K.value(m) - LAM * jnp.sum(m * x))

    def step(carry, _):
        x, state = carry
        g, m = jax.grad(f)(x), -state[0].mu
        updates, state = tx.update(g, state, x)
        x_next, n, m_next = x + updates, b1 * m - (1 - b1) * g, -state[0].mu
        v = updates / eps
        dk_n = v + LAM * x_next  # as the step took it: rounding may turn another entry into the largest one of n
        d1 = jnp.zeros([]) if K in NORMS else jnp.sum((n - jax.grad(K.conjugate)(LAM * x_next)) * v)
        d2 = jnp.sum((n - m_next) * (dk_n - K.subgradient(m_next)))
        change = lyapunov(x_next, m_next) - lyapunov(x, m)
        dissipated = eps * (1 + kappa * LAM) * d1 + kappa * (1 - b2) / (b2 - b1) * d2
        slack = smoothness * eps**2 / 2 * jnp.sum(v * v) - dissipated - change
        return (x_next, state), (slack, d1, d2)

    start = 0.1 * START
    start = start / jnp.maximum(1.01 * K.gauge(LAM * start), 1)
    _, parts = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), length=400))(start)
    assert jnp.all(jnp.stack(parts) >= -1e-12)


@pytest.mark.parametrize("K", FUNCTIONS, ids=name)
def test_decoupled_is_proximal_with_the_larger_rate(K):
    start = jnp.asarray(START / 4)
    explicit = run(momentax.lion_k(rate, K, weight_decay=LAM), start, gradients())
    larger = lambda count: rate(count) / (1 - rate(count) * LAM)  # noqa: E731
    implicit = run(momentax.lion_k(larger, K, weight_decay=LAM, decay="proximal"), start, gradients())
    np.testing.assert_allclose(explicit, implicit, atol=1e-13)


def test_the_quadratic_is_momentum_with_l2():
    """K = |x|^2 / 2 with b1 = b2 is gradient descent along the average, with decoupled decay."""
    start = jnp.asarray(START / 4)
    ours = run(momentax.lion_k(0.1, convex.quadratic(), 0.9, 0.9, LAM), start, gradients())
    chain = optax.chain(
        momentax.average_gradients(0.9, debias=False),
        momentax.decays.decoupled(LAM),
        optax.scale_by_learning_rate(0.1),
    )
    np.testing.assert_allclose(ours, run(chain, start, gradients()), rtol=1e-13)


@pytest.mark.parametrize("weight_decay", [None, 0.5])
def test_l1_is_the_lion_of_optax(weight_decay):
    start = jnp.asarray(START / 4)
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


def one_direction(tx, grads):
    """The first step: K is shown a multiple of the gradient."""
    return tx.update(grads, tx.init(grads))[0]


def test_a_global_norm_couples_leaves_and_a_leaf_norm_does_not():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[-4.0]])}
    coupled = one_direction(momentax.scale_by_lion_k(convex.l2(scope="global")), grads)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, g / 5, rtol=1e-14), coupled, grads)
    alone = one_direction(momentax.scale_by_lion_k(convex.l2()), grads)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-14), alone, {"a": [1.0, 0.0], "b": [[-1.0]]})
    assert one_direction(momentax.scale_by_lion_k(convex.l2(scope="global")), {}) == {}


STACKED = {"blocks/*": routing.matrix((1,), (2,), (0,))}


@pytest.mark.parametrize("K", [convex.nuclear(), convex.row_norm(), convex.linf(), convex.top_k(2)], ids=name)
def test_routing_states_the_axes_of_every_leaf(K):
    shapes = {
        "embed": {"embedding": (6, 3)},
        "conv": {"kernel": (2, 2, 3, 4), "bias": (4,)},
        "blocks": {"dense": {"kernel": (5, 3, 2)}},
        "norm": {"scale": (4, 2)},
    }
    normal = np.random.default_rng(0).normal
    grads = jax.tree.map(lambda shape: jnp.asarray(normal(size=shape)), shapes, is_leaf=lambda x: isinstance(x, tuple))
    u = one_direction(momentax.lion_k(1.0, K, routing=STACKED), grads)
    rules = {
        "embed/embedding": routing.embedding(),
        "conv/kernel": routing.matrix((0, 1, 2), (3,)),
        "conv/bias": routing.vector(),
        "blocks/dense/kernel": STACKED["blocks/*"],
        "norm/scale": routing.vector(),
    }
    for path, rule in rules.items():
        actual, g = u, grads
        for key in path.split("/"):
            actual, g = actual[key], g[key]
        np.testing.assert_allclose(-actual, K.on(rule).subgradient(g), atol=1e-13, err_msg=path)


def test_axes_are_asked_for_where_they_matter():
    """Without `routing`, functions of channels and matrices follow Flax, and the others take a leaf as a whole."""
    params = {"w": jnp.zeros((3, 4, 5))}
    for K in (convex.nuclear(), convex.row_norm()):
        with pytest.raises(ValueError, match="scale_by_lion_k.*'w'.*routing="):
            momentax.lion_k(0.1, K).init(params)
    g = {"w": jax.random.normal(jax.random.key(11), (3, 4, 5))}
    u = one_direction(momentax.scale_by_lion_k(convex.l2()), g)
    np.testing.assert_allclose(jnp.linalg.norm(u["w"].ravel()), 1, rtol=1e-14)


def test_a_leaf_too_small_for_its_function_is_refused_by_name():
    params = {"bias": jnp.zeros(3), "stack": jnp.zeros((9, 2, 2))}
    momentax.lion_k(0.1, convex.top_k(3)).init(params)
    with pytest.raises(
        ValueError, match=r"scale_by_lion_k.*'bias' \(3,\) has 3 entries; top_k\(4\) needs 4.*partition"
    ):
        momentax.lion_k(0.1, convex.top_k(4)).init(params)
    stacked = {"stack": routing.matrix((1,), (2,), (0,))}
    with pytest.raises(ValueError, match=r"'stack' \(9, 2, 2\) has 4 entries in each matrix; top_k\(5\) needs 5"):
        momentax.lion_k(0.1, convex.top_k(5), routing=stacked).init({"stack": params["stack"]})


@pytest.mark.parametrize("wrong", [jnp.sign, convex.huber, "l1"], ids=["sign", "huber", "text"])
def test_convex_must_be_a_convex_function(wrong):
    with pytest.raises(TypeError, match="scale_by_lion_k.*l1") as error:
        momentax.lion_k(0.1, wrong)
    assert ("Call that function" in str(error.value)) == callable(wrong)
