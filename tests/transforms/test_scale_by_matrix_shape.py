"""The factors of the shape, with convolutions, stacks and matrices side by side."""

import jax.numpy as jnp
import numpy as np
import pytest

import momentax
from momentax.routing import matrix


@pytest.mark.parametrize(
    ("scale", "factor"),
    [("kj", np.sqrt(6 / 4)), ("spectral", np.sqrt(6 / 4)), ("moonlight", 0.2 * np.sqrt(6)), ("none", 1.0)],
)
@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((4, 6), matrix((0,), (1,))),
        ((6, 4), matrix((1,), (0,))),
        ((2, 2, 1, 6), matrix((0, 1, 2), (3,))),
        ((5, 4, 2, 3), matrix((1,), (2, 3), (0,))),
        ((4, 18), matrix((0,), (1,), blocks=3)),
    ],
)
def test_factors_of_four_inputs_and_six_outputs(scale, factor, shape, rule):
    tx = momentax.scale_by_matrix_shape(scale, routing=rule)
    u = {"w": jnp.ones(shape)}
    np.testing.assert_allclose(tx.update(u, tx.init(u))[0]["w"], np.full(shape, factor), rtol=1e-6)


def test_kj_does_not_shrink_and_spectral_does():
    u = {"kernel": jnp.ones((9, 4))}  # nine inputs, four outputs
    for scale, factor in (("kj", 1.0), ("spectral", 2 / 3)):
        tx = momentax.scale_by_matrix_shape(scale)
        np.testing.assert_allclose(tx.update(u, tx.init(u))[0]["kernel"], np.full((9, 4), factor), rtol=1e-6)


def test_the_axes_that_the_codes_read():
    u = {"kernel": jnp.ones((4, 9, 3, 1))}  # (out, in, height, width)
    rule = matrix((1, 2, 3), (0,))
    for scale, factor in (("kj_last_axes", np.sqrt(3)), ("moonlight_first_axes", 0.2 * 3)):
        tx = momentax.scale_by_matrix_shape(scale, routing=rule)
        np.testing.assert_allclose(tx.update(u, tx.init(u))[0]["kernel"], np.full((4, 9, 3, 1), factor), rtol=1e-6)
