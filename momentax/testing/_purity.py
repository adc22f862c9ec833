"""Checks that it is a pure function: compiled, scanned, batched or donated, it does the same."""

import jax
import jax.numpy as jnp

from momentax.testing._compare import assert_close, assert_same_types
from momentax.testing._subject import LOSSES, STEPS, Moment, Subject, gradients, parameters


def _stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def check_jit_equals_eager(subject: Subject):
    """Compiled it gives what it gives run operation by operation, as the other checks run it."""
    assert_close(subject.run(step=jax.jit(subject.advance())), list(subject.reference), "run under jit")


def check_scan_equals_loop(subject: Subject):
    """As the body of `jax.lax.scan` it gives what a Python loop gives."""
    params = parameters()

    def body(carry, inputs):
        moment = subject.advance()(*carry, *inputs)
        return (moment.params, moment.state), moment.updates

    @jax.jit
    def scan(params, grads, values):
        carry = (params, subject.transform.init(params))
        return jax.lax.scan(body, carry, (grads, values))

    (params, state), updates = scan(params, _stack(gradients()), jnp.asarray(LOSSES))
    last = Moment(params, state, jax.tree.map(lambda leaf: leaf[-1], updates))
    assert_close(last, subject.reference[-1], "the end of a scan")


def check_vmap_equals_loop(subject: Subject):
    """Several problems under `jax.vmap` give what each gives alone."""
    starts = [parameters(), parameters(seed=7)]
    pushes = [gradients(), gradients(seed=3)]
    alone = [subject.run(params=p, grads=g) for p, g in zip(starts, pushes, strict=True)]
    step = jax.jit(jax.vmap(subject.advance(), in_axes=(0, 0, 0, None)))
    params, state = _stack(starts), jax.vmap(subject.transform.init)(_stack(starts))
    for index, value in enumerate(LOSSES):
        moment = step(params, state, _stack([g[index] for g in pushes]), value)
        params, state = moment.params, moment.state
        assert_close(moment, _stack([run[index] for run in alone]), f"step {index} of two problems at once")


def check_compiles_once(subject: Subject):
    """Later steps reuse the program of the first, also when `init` was compiled."""
    traces: list[None] = []

    def step(params, state, gradients, value):
        traces.append(None)
        return subject.advance()(params, state, gradients, value)

    subject.run(step=jax.jit(step))
    assert len(traces) == 1, f"{STEPS} steps are traced {len(traces)} times: shapes, dtypes or weak types change"
    eager, compiled = subject.transform.init(parameters()), jax.jit(subject.transform.init)(parameters())
    assert_same_types(compiled, eager, "the state of a compiled init")


def check_donation_is_safe(subject: Subject):
    """A step may overwrite the parameters and the state that it is given."""
    donated = jax.jit(subject.advance(), donate_argnums=(0, 1))
    params = parameters()
    state = subject.transform.init(params)
    for tree, value, expected in zip(gradients(), LOSSES, subject.reference, strict=True):
        moment = donated(params, state, tree, value)
        assert_close(moment.updates, expected.updates, "updates with donated arguments")
        params, state = moment.params, moment.state


def check_leaks_no_tracers(subject: Subject):
    """Nothing of a trace outlives it."""
    with jax.checking_leaks():
        params = parameters()
        state = jax.eval_shape(subject.build().init, params)
        jax.eval_shape(subject.advance(), params, state, gradients()[0], LOSSES[0])
