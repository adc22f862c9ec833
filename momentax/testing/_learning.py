"""Checks that training with it makes progress, with numbers and with schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from momentax.testing._compare import assert_close
from momentax.testing._subject import Subject, gradients, parameters, updates_of
from momentax.testing._when import when

BUDGET = 300  # steps
PROGRESS = 10  # by which the loss must have been divided after them


def _assert_learns(subject, loss, params, what):
    optimizer = subject.terminal

    @jax.jit
    def train(params):
        def step(_, carry):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params, **subject.extras(value))
            return optax.apply_updates(params, updates), state

        params, _ = jax.lax.fori_loop(0, BUDGET, step, (params, optimizer.init(params)))
        return loss(params)

    before, after = float(loss(params)), float(train(params))
    assert after <= before / PROGRESS, (
        f"{what}: the loss goes from {before:.3g} to {after:.3g} in {BUDGET} steps; "
        f"it should fall below {before / PROGRESS:.3g}. Try another learning rate, or Traits(learns=False)."
    )


@when(lambda traits: traits.learns)
def check_learns_a_quadratic(subject: Subject):
    """It divides a convex quadratic of condition 10, in vectors, by ten within 300 steps."""
    curvature = jnp.linspace(0.1, 1.0, 8)
    target = jnp.asarray(np.random.default_rng(5).standard_normal(8), jnp.float32)

    def loss(params):
        errors = curvature * (params["bias"] - target) ** 2
        return 0.5 * jnp.sum(errors) + 0.5 * (params["temperature"] - 1) ** 2

    _assert_learns(subject, loss, {"bias": jnp.zeros(8), "temperature": jnp.zeros(())}, "a quadratic")


@when(lambda traits: traits.learns)
def check_learns_least_squares(subject: Subject):
    """It divides the loss of a linear layer fitted to a linear map by ten within 300 steps."""
    rng = np.random.default_rng(6)
    inputs = jnp.asarray(rng.standard_normal((32, 8)), jnp.float32)
    truth = jnp.asarray(rng.standard_normal((8, 4)), jnp.float32)
    start = jnp.asarray(0.1 * rng.standard_normal((8, 4)), jnp.float32)
    outputs = inputs @ truth + 1.0

    def loss(params):
        layer = params["dense"]
        return 0.5 * jnp.mean((inputs @ layer["kernel"] + layer["bias"][None, :] - outputs) ** 2)

    params = {"dense": {"kernel": start, "bias": jnp.zeros(4)}}
    _assert_learns(subject, loss, params, "least squares")


@when(lambda traits: bool(traits.scheduled))
def check_a_constant_schedule_equals_the_constant(subject: Subject):
    """Schedules that always return the number do what the number does."""
    numbers = {name: subject.argument(name) for name in subject.traits.scheduled}
    missing = [name for name, number in numbers.items() if not isinstance(number, (int, float))]
    assert not missing, f"Traits.scheduled names {', '.join(missing)}, which have no number here: give them one."
    with jax.enable_x64(True):
        schedules = {name: _schedule(number) for name, number in numbers.items()}
        params, grads = parameters(jnp.float64), gradients(jnp.float64)
        actual = subject.run(subject.build(**schedules), params=params, grads=grads)
        expected = subject.run(params=params, grads=grads)
        assert_close(updates_of(actual), updates_of(expected), "updates under constant schedules")


def _schedule(number):
    return lambda count: jnp.asarray(number, jnp.float64) + 0 * count
