"""AuON's brake is one number near 1: directions stay, and how far it can be from 1 is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax
from momentax import routing


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def brake(u, *arguments, **options):
    tx = momentax.scale_by_cosh_rms(*arguments, **options)
    return tx.update(u, tx.init(u))[0]


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("shape", [(), (7,), (6, 8), (2, 3, 4)])
def test_the_direction_stays_and_the_factor_is_bounded(shape, variant):
    u = 5 * jax.random.normal(jax.random.key(0), shape)
    new = brake(u, 1.5, variant=variant)
    np.testing.assert_allclose(jnp.sum(new * u) / jnp.sqrt(jnp.sum(new**2) * jnp.sum(u**2)), 1, rtol=1e-14)
    length = jnp.sqrt(jnp.sum(u**2)) if variant == "official" else 1.0
    r = length / jnp.sqrt(jnp.sum(new**2))
    assert 1 - 1e-6 <= r <= np.sqrt(1 + np.sinh(1.5) ** 2 / u.size) * (1 + 1e-6)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 8.0])
def test_both_ends_of_the_factor(gamma):
    alone = jnp.zeros((6, 8)).at[2, 3].set(-4.0)
    np.testing.assert_allclose(brake(alone, gamma), alone / 4 / np.sqrt(1 + np.sinh(gamma) ** 2 / 48), rtol=2e-7)
    spread = jnp.full((6, 8), 4.0)
    factor = np.cosh(gamma / np.sqrt(48))
    np.testing.assert_allclose(brake(spread, gamma, variant="official"), spread / factor, rtol=2e-7)


def test_the_paper_normalises_and_the_code_does_not():
    u = jax.random.normal(jax.random.key(0), (6, 8))
    np.testing.assert_allclose(brake(1e-9 * u, eps=0.0), brake(u, eps=0.0), rtol=1e-12)
    official = brake(u, variant="official", eps=0.0)
    np.testing.assert_allclose(brake(1e-9 * u, variant="official", eps=0.0), 1e-9 * official, rtol=1e-12)
    np.testing.assert_allclose(official, brake(u, eps=0.0) * jnp.sqrt(jnp.sum(u**2)), rtol=1e-12)


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_zero_gives_zero(variant, eps):
    np.testing.assert_array_equal(brake(jnp.zeros((3, 4)), eps=eps, variant=variant), 0)


@pytest.mark.parametrize("gamma", [40.0, 1e3])
def test_a_large_gamma_makes_steps_small_and_nothing_else(gamma):
    u = jnp.array([3.0, -4.0, 0.0, 1e-3], jnp.float32)
    new = brake(u, gamma)
    assert new.dtype == jnp.float32 and np.all(np.isfinite(new)) and np.all(np.abs(new) <= 1e-10)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_matrices_of_a_stack_are_by_themselves(variant):
    u = jax.random.normal(jax.random.key(1), (3, 4, 5)) * jnp.array([1.0, 1e3, 1.0])[:, None, None]
    u = u.at[2, 0, 0].set(jnp.nan)
    stacked = brake(u, 3.0, variant=variant, routing=routing.matrix((1,), (2,), (0,)))
    for index in range(2):
        np.testing.assert_allclose(stacked[index], brake(u[index], 3.0, variant=variant), rtol=1e-12)
    assert np.all(np.isnan(stacked[2]))
    assert np.all(np.isnan(brake(u, 3.0, variant=variant)))  # without routing the leaf is one
