"""Every optimizer in the three loops people write: Linen's TrainState, nnx.Optimizer and plain Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import CASES
from flax import linen, nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, PartitionSpec

from momentax import optimizers

OPTIMIZERS = [case for case in CASES if hasattr(optimizers, case.factory.__name__)]
STEPS = 4
TOLERANCE = 1e-5  # of the loss, in float32: the three loops compile to different programs


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.LayerNorm(name="norm")(linen.relu(linen.Conv(4, (3, 3), name="conv")(x)))
        return linen.Dense(3, name="dense")(x.reshape(len(x), -1))


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 4, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(nnx.relu(self.conv(x)))
        return self.dense(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((8, 4, 4, 2)), jnp.float32)
    return images, jnp.asarray(rng.integers(0, 3, 8))


@pytest.fixture(scope="module")
def start(data):
    return LinenModel().init(jax.random.key(0), data[0])["params"]


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def linen_loss(params, data):
    return cross_entropy(LinenModel().apply({"params": params}, data[0]), data[1])


def plain_loop(transform, params, data):
    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(linen_loss)(params, data)
        updates, state = transform.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, value

    losses, state = [], transform.init(params)
    for _ in range(STEPS):
        params, state, value = step(params, state)
        losses.append(float(value))
    return losses


def train_state_loop(transform, params, data):
    @jax.jit
    def step(state):
        value, grads = jax.value_and_grad(linen_loss)(state.params, data)
        return state.apply_gradients(grads=grads), value

    losses, state = [], TrainState.create(apply_fn=LinenModel().apply, params=params, tx=transform)
    for _ in range(STEPS):
        state, value = step(state)
        losses.append(float(value))
    return losses


def nnx_loop(transform, params, data):
    model = NNXModel(nnx.Rngs(0))
    nnx.update(model, params)
    optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda model: cross_entropy(model(data[0]), data[1]))(model)
        optimizer.update(model, grads, value=value)
        return value

    return [float(step(model, optimizer)) for _ in range(STEPS)]


@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.name)
def test_three_loops_give_the_same_losses(case, start, data):
    transform = case.factory(**case.arguments)
    losses = plain_loop(transform, start, data)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(nnx_loop(transform, start, data), losses, rtol=TOLERANCE)
    if case.traits.needs_value:
        with pytest.raises(ValueError, match="value="):  # TrainState has no way to pass it
            train_state_loop(transform, start, data)
    else:
        np.testing.assert_allclose(train_state_loop(transform, start, data), losses, rtol=TOLERANCE)


def sharded_layer():
    """A layer whose variables carry their sharding, as in model-parallel training."""
    kernel, bias = {"out_sharding": (None, "model")}, {"out_sharding": ("model",)}
    return nnx.Linear(4, 16, kernel_metadata=kernel, bias_metadata=bias, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.name)
def test_state_of_a_sharded_layer_lies_where_the_layer_lies(case, kind):
    transform = case.factory(**case.arguments)
    with jax.set_mesh(jax.make_mesh((8,), ("model",), axis_types=(kind,))):
        layer = sharded_layer()
        optimizer = nnx.Optimizer(layer, transform, wrt=nnx.Param)

        @nnx.jit
        def step(layer, optimizer):
            value, grads = nnx.value_and_grad(lambda layer: jnp.mean(layer(jnp.ones((2, 4))) ** 2))(layer)
            optimizer.update(layer, grads, value=value)
            return value

        losses = [float(step(layer, optimizer)) for _ in range(2)]
        assert losses[1] < losses[0]
        sharding = layer.kernel.get_value().sharding
        assert sharding.spec == PartitionSpec(None, "model")
        mirrored = [leaf for leaf in jax.tree.leaves(nnx.state(optimizer)) if leaf.ndim == 2]  # shorter where sparse
        assert mirrored
        assert all(leaf.sharding.is_equivalent_to(sharding, 2) for leaf in mirrored)


def test_every_optimizer_is_covered():
    public = {name for name in vars(optimizers) if not name.startswith("_")}
    assert {case.factory.__name__ for case in OPTIMIZERS} == public
