"""Clocks against loops that count as the sources do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax import clocks


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_what_is_due_is_due_every_period_but_not_at_the_start():
    assert np.flatnonzero(clocks.due(np.arange(10), 3)).tolist() == [3, 6, 9]
    assert np.flatnonzero(clocks.due(np.arange(4), 1)).tolist() == [1, 2, 3]


@pytest.mark.parametrize("every", [1, 2, 5, None])
def test_the_counter_of_stable_spam_is_the_one_of_its_code(every):
    tau, before, after = 0, [], []
    for t in range(1, 14):
        tau += 1
        before.append(tau)
        if every is not None and t % every == 0:
            tau = 1
        after.append(tau)
    counts = jnp.arange(13)
    np.testing.assert_array_equal(clocks.counter_of_stable_spam(every, set_back=False)(counts), before)
    np.testing.assert_array_equal(clocks.counter_of_stable_spam(every, set_back=True)(counts), after)


@pytest.mark.parametrize("periodic", [False, True])
def test_a_shrunk_value_falls_to_its_floor(periodic):
    total, floor = 6, 0.25
    schedule = clocks.cosine_shrunk(lambda count: 0.5 + 0.01 * count, total, floor, periodic=periodic)

    def shrink(t):
        return floor + (1 - floor) * (1 + math.cos(math.pi * t / (total + 1))) / 2

    for count in range(3 * total):
        t = count + 1 if periodic else min(count + 1, total + 1)
        np.testing.assert_allclose(schedule(jnp.asarray(count)), (0.5 + 0.01 * count) * shrink(t), rtol=1e-13)
    assert shrink(total + 1) == floor


def test_without_a_number_of_steps_nothing_shrinks():
    value = lambda count: 0.5  # noqa: E731
    assert clocks.cosine_shrunk(value, None, 0.25) is value
