"""A spike so large that its square overflows does not stop a matrix for good."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax

OPTIMIZERS = {
    "auon": momentax.auon(0.01),
    "fismo": momentax.fismo(0.01, steps=1),
    "muon": momentax.muon(0.01, steps=1),
    "namo": momentax.namo(0.01, steps=1),
    "namo, official": momentax.namo(0.01, steps=1, variant="official"),
    "namo_d": momentax.namo_d(0.01, steps=1),
    "normuon": momentax.normuon(0.01, steps=1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_go_on_after_a_spike(name):
    tx = OPTIMIZERS[name]
    w = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)}
    sizes = jnp.asarray([1, 1e20, 1, 1, 1, 1, 1, 1], jnp.float32)

    def step(state, size):
        updates, state = tx.update({"kernel": size * w["kernel"]}, state, w)
        return state, jnp.linalg.norm(updates["kernel"])

    moved = np.asarray(jax.jit(lambda: jax.lax.scan(step, tx.init(w), sizes)[1])())
    assert np.isfinite(moved).all() and (moved[2:] > 0).all() and (moved[1:] < 20 * moved[0]).all()
