"""The step along a sphere: its identities, for single matrices, stacks and decay, and what has no direction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax
from momentax import retract_to_sphere, routing

STACKED = routing.matrix((1,), (2,), (0,))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normal(seed, shape=(4, 6), dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def step(tx, u, w):
    """The weight after one step from a fresh state."""
    return w + jax.jit(tx.update)(u, tx.init(w), w)[0]


def run(tx, w, directions):
    """All weights after the first."""

    def advance(carry, u):
        w, state = carry
        u, state = tx.update(u, state, w)
        w = optax.apply_updates(w, u)
        return (w, state), w

    return jax.jit(lambda w: jax.lax.scan(advance, (w, tx.init(w)), directions)[1])(w)


def norms(w):
    return jnp.sqrt(jnp.sum(jnp.square(w.astype(jnp.float64)), axis=(-2, -1)))


@pytest.mark.parametrize("radius", ["initial", "current"])
@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float64, 1e-14), (jnp.float32, 1e-6)])
def test_norms_stay(radius, dtype, limit):
    w = normal(0, dtype=dtype)
    path = run(retract_to_sphere(0.1, radius=radius), w, normal(1, (20, 4, 6), dtype))
    np.testing.assert_allclose(norms(path), norms(w) * np.ones(20), rtol=limit)


def test_a_stored_radius_holds_in_half_precision():
    """Entries are rounded to 8 bits in each step; only with the stored radius do the errors not add up."""
    w, directions = normal(0, (16, 16), jnp.bfloat16), normal(1, (300, 16, 16), jnp.bfloat16)
    error = {
        radius: float(
            jnp.max(jnp.abs(norms(run(retract_to_sphere(0.005, radius=radius), w, directions)) / norms(w) - 1))
        )
        for radius in ("initial", "current")
    }
    assert error["initial"] < 2**-10 < 2**-8 < error["current"]


@pytest.mark.parametrize("rate", [0.01, 0.3, 2.0])
def test_the_learning_rate_is_the_tangent_of_the_angle(rate):
    w, u = normal(0), normal(1)
    u = u - w * (jnp.sum(u * w) / jnp.sum(w * w))
    new, size = step(retract_to_sphere(rate), u, w), norms(w)
    angle = jnp.arccos(jnp.sum(new * w) / size**2)
    np.testing.assert_allclose(jnp.tan(angle), rate, rtol=1e-10)
    np.testing.assert_allclose(norms(new - w), 2 * size * jnp.sin(angle / 2), rtol=1e-10)


def test_the_step_is_tangential_up_to_the_square_of_the_rate():
    w, u = normal(0), normal(1)
    radial = w * (jnp.sum(u * w) / jnp.sum(w * w))
    tangential = norms(w) / norms(u) * (u - radial)
    error = [float(norms(step(retract_to_sphere(rate), u, w) - w + rate * tangential)) for rate in (1e-2, 1e-3, 1e-4)]
    np.testing.assert_allclose([error[0] / error[1], error[1] / error[2]], 100, rtol=0.05)


def test_the_new_weight_points_where_a_step_of_the_rate_ends():
    w, u, rate = normal(0), normal(1), 0.3
    new, size = step(retract_to_sphere(rate), u, w), norms(w)
    aim = w - rate * size * u / norms(u)
    np.testing.assert_allclose(new / size, aim / norms(aim), rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_one_pass_gives_norms_as_exact_as_two(dtype):
    """Directions along the weight, where the closed form cancels most: it loses (1 + eta)^2 / (1 - eta)^2 roundings."""
    w = normal(0, (32, 32), dtype)
    for rate in (0.01, 0.5):
        for u in (w, -w, w + 0.1 * normal(1, (32, 32), dtype)):
            new = step(retract_to_sphere(rate), u, w)
            np.testing.assert_allclose(norms(new), norms(w), rtol=40 * jnp.finfo(dtype).eps)


def test_decay_is_a_learning_rate_where_the_radius_is_stored():
    w, directions, rate, decay = normal(0), normal(1, (20, 4, 6)), 0.1, 0.7
    a = run(retract_to_sphere(rate, decay), w, directions)
    b = run(retract_to_sphere(rate / (1 - rate * decay)), w, directions)
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_decay_shrinks_the_present_radius():
    rates = 0.1 / (1 + jnp.arange(10.0))
    tx = retract_to_sphere(lambda count: rates[count], 0.7, radius="current")
    w = normal(0)
    path = run(tx, w, normal(1, (10, 4, 6)))
    np.testing.assert_allclose(norms(path), norms(w) * jnp.cumprod(1 - 0.7 * rates), rtol=1e-12)


def test_cautious_decay_takes_the_entries_that_the_step_makes_smaller():
    w, u = normal(0), normal(1).at[0].set(0.0)  # ties decay, too
    decayed = w - 0.1 * 0.7 * jnp.where(w * u >= 0, w, 0)
    expected = step(retract_to_sphere(0.1, radius="current"), u, decayed)
    np.testing.assert_allclose(
        step(retract_to_sphere(0.1, 0.7, radius="current", decay="cautious"), u, w), expected, rtol=1e-12
    )


def test_masked_leaves_do_not_decay():
    w = {"a": {"kernel": normal(0)}, "b": {"kernel": normal(0)}}
    u = {"a": {"kernel": normal(1)}, "b": {"kernel": normal(1)}}
    tx = retract_to_sphere(0.1, 0.7, {"a": True, "b": False}, radius="current")
    new = tx.update(u, tx.init(w), w)[0]
    size = [float(norms(w[name]["kernel"] + new[name]["kernel"]) / norms(w[name]["kernel"])) for name in "ab"]
    np.testing.assert_allclose(size, [1 - 0.07, 1.0])


def test_scales_of_weights_and_directions_do_not_matter():
    w, directions = normal(0), normal(1, (10, 4, 6))
    tx = retract_to_sphere(0.1, eps=1e-30)
    path = run(tx, w, directions)
    np.testing.assert_allclose(run(tx, 1e-6 * w, directions), 1e-6 * path, rtol=1e-11)
    np.testing.assert_allclose(run(tx, w, 1e-9 * directions), path, rtol=1e-11)


def test_a_stored_radius_is_restored():
    w = normal(0)
    tx = retract_to_sphere(0.1)
    half = 0.5 * w
    np.testing.assert_allclose(norms(half + tx.update(normal(1), tx.init(w), half)[0]), norms(w), rtol=1e-14)
    np.testing.assert_allclose(half + tx.update(jnp.zeros_like(w), tx.init(w), half)[0], w, rtol=1e-14)


@pytest.mark.parametrize("radius", ["initial", "current"])
def test_each_matrix_of_a_stack_has_its_own_sphere(radius):
    scales = jnp.array([1.0, 10.0, 0.1])[:, None, None]
    w, directions = normal(0, (3, 4, 6)) * scales, normal(1, (5, 3, 4, 6))
    make = functools.partial(retract_to_sphere, 0.1, 0.2, radius=radius, decay="cautious")
    path = run(make(routing=STACKED), w, directions)
    alone = jax.vmap(lambda w, u: run(make(), w, u), in_axes=(0, 1), out_axes=1)(w, directions)
    np.testing.assert_allclose(path, alone, rtol=1e-12)


def test_scope_leaf_has_one_sphere_for_the_stack():
    w, u = normal(0, (3, 4, 6)), normal(1, (3, 4, 6))
    one = step(retract_to_sphere(0.1, scope="leaf", routing=STACKED), u, w)
    flat = step(retract_to_sphere(0.1), u.reshape(12, 6), w.reshape(12, 6))
    np.testing.assert_allclose(one.reshape(12, 6), flat, rtol=1e-13)


def test_matrices_side_by_side_have_spheres_of_their_own():
    w, u = normal(0, (3, 4, 6)), normal(1, (3, 4, 6))
    fused = routing.matrix((0,), (1,), blocks=3)
    side = lambda x: jnp.concatenate(list(x), axis=1)  # noqa: E731
    new = step(retract_to_sphere(0.1, routing=fused), side(u), side(w))
    np.testing.assert_allclose(new, side(step(retract_to_sphere(0.1, routing=STACKED), u, w)), rtol=1e-13)


def test_heads_lie_on_spheres_too():
    w, u = {"lm_head": {"kernel": normal(0)}}, {"lm_head": {"kernel": normal(1)}}
    tx = retract_to_sphere(0.1)
    new = w["lm_head"]["kernel"] + tx.update(u, tx.init(w), w)[0]["lm_head"]["kernel"]
    np.testing.assert_allclose(norms(new), norms(w["lm_head"]["kernel"]), rtol=1e-14)


def test_zero_matrices_are_refused_by_name_where_values_are_known():
    params = {"block": {"kernel": normal(0, (3, 4, 6)).at[1].set(0.0)}}
    for radius in ("initial", "current"):
        tx = retract_to_sphere(0.1, radius=radius, routing=STACKED)
        with pytest.raises(
            ValueError, match=r"retract_to_sphere: leaf 'block/kernel' \(3, 4, 6\) \(matrix 1 of 3\).*init"
        ):
            tx.init(params)


@pytest.mark.parametrize("radius", ["initial", "current"])
def test_zero_matrices_stay_zero_where_values_are_unknown(radius):
    tx = retract_to_sphere(0.1, 0.1, radius=radius, routing=STACKED)
    w = normal(0, (3, 4, 6)).at[1].set(0.0)
    jax.eval_shape(tx.init, w)
    path = run(tx, w, normal(1, (3, 3, 4, 6)))  # init is traced
    np.testing.assert_array_equal(path[:, 1], 0.0)
    assert np.all(np.isfinite(path)) and np.all(path[0, 0] != w[0])


def test_a_zero_direction_changes_nothing():
    w = normal(0)
    np.testing.assert_allclose(step(retract_to_sphere(0.1), jnp.zeros_like(w), w), w, rtol=1e-15)


def test_what_is_not_finite_stays_in_its_matrix():
    w, u = normal(0, (3, 4, 6)), normal(1, (3, 4, 6))
    tx = retract_to_sphere(0.1, routing=STACKED)
    for bad in (jnp.nan, jnp.inf):
        new, clean = step(tx, u.at[1, 2, 3].set(bad), w), step(tx, u, w)
        assert np.all(np.isnan(new[1]))
        np.testing.assert_array_equal(new[jnp.array([0, 2])], clean[jnp.array([0, 2])])


def test_vectors_are_refused_by_name():
    params = {"dense": {"kernel": normal(0), "bias": jnp.ones(6)}}
    with pytest.raises(ValueError, match=r"retract_to_sphere: leaf 'dense/bias'.*partition_by_rule"):
        momentax.retract_to_sphere(0.1).init(params)


def test_bad_numbers_are_refused():
    for arguments in (
        dict(learning_rate=-1.0),
        dict(learning_rate=0.1, weight_decay=-1.0),
        dict(learning_rate=0.1, eps=0.0),
    ):
        with pytest.raises(ValueError, match="retract_to_sphere"):
            retract_to_sphere(**arguments)
