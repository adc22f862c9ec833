"""Trains a small Flax NNX network on the digits bundled with scikit-learn: python examples/nnx_loop.py"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import momentax


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.second = nnx.Conv(32, 32, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 32, 10, rngs=rngs)

    def __call__(self, images):  # (batch, 8, 8, 1) -> (batch, 10)
        x = nnx.relu(self.first(images))
        x = nnx.relu(self.second(x))
        return self.head(x.reshape(len(x), -1))


@nnx.jit
def train_step(network, optimizer, images, labels):
    def loss_fn(network):
        return optax.softmax_cross_entropy_with_integer_labels(network(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(network)
    optimizer.update(network, grads, value=loss)  # `value` is for methods that model the loss; others ignore it
    return loss


def main(epochs: int = 10, batch: int = 64) -> float:
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    images, test_images, labels, test_labels = map(jnp.asarray, split)

    network = Network(nnx.Rngs(0))
    method = momentax.adamp(3e-3, weight_decay=1e-2, weight_decay_mask=momentax.routing.no_decay_on_vectors)
    optimizer = nnx.Optimizer(network, method, wrt=nnx.Param)

    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.key(epoch), len(images))
        for start in range(0, len(images) - batch + 1, batch):
            chosen = order[start : start + batch]
            loss = train_step(network, optimizer, images[chosen], labels[chosen])
        print(f"epoch {epoch + 1:2d}  last loss {loss:.3f}")

    accuracy = float((network(test_images).argmax(-1) == test_labels).mean())
    print(f"test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
