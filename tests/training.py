"""A run that can be cut anywhere: its gradients are functions of the parameters and of the step."""

import jax
import jax.numpy as jnp
import optax


def run(tx, params, state, first, last):
    """Parameters and state before step `last`, from those before step `first`."""

    @jax.jit
    def step(params, state, at):
        grads = jax.tree.map(lambda p: jnp.sin(3 * p) * (1 + at), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for at in range(first, last):
        params, state = step(params, state, jnp.float32(at))
    return params, state
