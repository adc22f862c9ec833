"""Trains a small Flax Linen network on the digits bundled with scikit-learn: python examples/linen_loop.py"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import momentax


class Network(nn.Module):
    @nn.compact
    def __call__(self, images):  # (batch, 8, 8, 1) -> (batch, 10)
        x = nn.relu(nn.Conv(32, (3, 3))(images))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


@jax.jit
def train_step(state, images, labels):
    def loss_fn(params):
        logits = state.apply_fn(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def main(epochs: int = 10, batch: int = 64) -> float:
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    images, test_images, labels, test_labels = map(jnp.asarray, split)

    network = Network()
    params = network.init(jax.random.key(0), images[:1])
    optimizer = momentax.adamp(3e-3, weight_decay=1e-2, weight_decay_mask=momentax.routing.no_decay_on_vectors)
    state = TrainState.create(apply_fn=network.apply, params=params, tx=optimizer)

    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.key(epoch), len(images))
        for start in range(0, len(images) - batch + 1, batch):
            chosen = order[start : start + batch]
            state, loss = train_step(state, images[chosen], labels[chosen])
        print(f"epoch {epoch + 1:2d}  last loss {loss:.3f}")

    accuracy = float((network.apply(state.params, test_images).argmax(-1) == test_labels).mean())
    print(f"test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
