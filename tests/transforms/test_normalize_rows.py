"""Rows of equal size, a matrix of known size, and matrices that do not notice one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax import normalize_rows, routing

STACKED = routing.matrix((1,), (2,), (0,))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normal(seed, shape=(4, 6)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def first(tx, u):
    return jax.jit(lambda u: tx.update(u, tx.init(u))[0])(u)


def row_rms(u):
    """Of the outputs of a kernel (in, out)."""
    return jnp.sqrt(jnp.mean(u * u, axis=0))


def test_rows_of_a_first_or_a_repeated_update_are_equal():
    u = normal(0) * jnp.array([[1.0, 10.0, 0.1, 3.0, 1e-3, 1e3]])
    tx = normalize_rows(0.9)
    state = tx.init(u)
    for _ in range(3):
        new, state = tx.update(u, state)
        np.testing.assert_allclose(row_rms(new), row_rms(new)[0], rtol=1e-5)  # eps is 1e-7 of the smallest row


@pytest.mark.parametrize("rescale", ["norm", "rms"])
def test_the_size_of_the_matrix_is_known(rescale):
    tx, shape = normalize_rows(rescale=rescale), (4, 6)
    state = tx.init(jnp.zeros(shape))
    for seed in range(4):
        u = normal(seed)
        new, state = tx.update(u, state)
        rms = np.sqrt(np.mean(u * u)) if rescale == "norm" else 0.2
        np.testing.assert_allclose(jnp.sqrt(jnp.mean(new * new)), rms, rtol=1e-13)


def test_the_average_of_squares_is_that_of_the_paper():
    decay, eps = (lambda count: 0.9 - 0.2 * count), 1e-2
    tx = normalize_rows(decay, eps)
    state, v = tx.init(jnp.zeros((4, 6))), np.zeros(6)
    for t in range(3):
        o = np.asarray(normal(t)).T  # (out, in), as the paper has it
        v = decay(t) * v + (1 - decay(t)) * np.mean(o * o, axis=1)
        y = o / (np.sqrt(v)[:, None] + eps)
        new, state = tx.update(jnp.asarray(o.T), state)
        np.testing.assert_allclose(new.T, y * np.linalg.norm(o) / np.linalg.norm(y), rtol=1e-13)
        np.testing.assert_allclose(state.nu, v, rtol=1e-13)


def test_rows_are_outputs_whatever_the_layout():
    u = normal(0, (3, 2, 4, 5))
    conv = routing.matrix((0, 1, 2), (3,))
    flat = first(normalize_rows(), u.reshape(24, 5)).reshape(u.shape)
    np.testing.assert_allclose(first(normalize_rows(routing=conv), u), flat, rtol=1e-13)
    torch = routing.matrix((1, 2, 3), (0,))
    turned = first(normalize_rows(routing=torch), u.transpose(3, 0, 1, 2))
    np.testing.assert_allclose(turned.transpose(1, 2, 3, 0), flat, rtol=1e-13)


def test_matrices_of_a_stack_and_side_by_side_are_normalised_alone():
    u = normal(0, (3, 4, 6)) * jnp.array([1.0, 10.0, 0.1])[:, None, None]
    alone = jnp.stack([first(normalize_rows(), matrix) for matrix in u])
    np.testing.assert_allclose(first(normalize_rows(routing=STACKED), u), alone, rtol=1e-13)
    side = lambda x: jnp.concatenate(list(x), axis=1)  # noqa: E731
    fused = first(normalize_rows(routing=routing.matrix((0,), (1,), blocks=3)), side(u))
    np.testing.assert_allclose(fused, side(alone), rtol=1e-13)


@pytest.mark.parametrize("rescale", ["norm", "rms"])
@pytest.mark.parametrize("eps", [0.0, 1e-10])
def test_dead_rows_and_matrices_stay_zero(rescale, eps):
    u = normal(0, (3, 4, 6)).at[0, :, 2].set(0.0).at[1].set(0.0).at[2, 1].set(0.0)
    new = first(normalize_rows(eps=eps, rescale=rescale, routing=STACKED), u)
    np.testing.assert_array_equal(new == 0, u == 0)
    assert np.all(np.isfinite(new))


def test_what_is_not_finite_stays_in_its_matrix():
    u, tx = normal(0, (3, 4, 6)), normalize_rows(routing=STACKED)
    new, clean = first(tx, u.at[1, 2, 3].set(jnp.nan)), first(tx, u)
    assert np.all(np.isnan(new[1]))
    np.testing.assert_array_equal(new[jnp.array([0, 2])], clean[jnp.array([0, 2])])


def test_vectors_are_refused_by_name():
    with pytest.raises(ValueError, match=r"normalize_rows: leaf 'dense/bias'.*partition_by_rule"):
        normalize_rows().init({"dense": {"kernel": normal(0), "bias": jnp.ones(6)}})
