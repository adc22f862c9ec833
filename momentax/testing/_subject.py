"""The transformation under test, and the parameters, gradients and losses that every check feeds it."""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from momentax.testing._traits import Traits

STEPS = 3
LOSSES = (3.0, 2.5, 2.2)
STEP_SIZE = -0.05  # how far parameters follow the updates of a transform without a learning rate

# Named as Flax names them. The axes that get sharded are multiples of 8.
SHAPES: Mapping[str, Any] = {
    "attention": {"query": {"kernel": (16, 8, 2), "bias": (8, 2)}},
    "conv": {"kernel": (3, 3, 8, 8)},
    "dropout": {},
    "mlp": {"up": {"kernel": (8, 16), "bias": (16,)}, "down": {"kernel": (16, 8)}},
    "norm": {"scale": (8,)},
    "square": {"kernel": (8, 8)},
    "temperature": (),
}


# The whole tree is for checks that ask about kinds of leaves or meshes.
EVERYTHING = tuple(SHAPES)
SOME = ("dropout", "mlp", "norm", "temperature")


class Moment(NamedTuple):
    """Where a run stands after a step."""

    params: Any
    state: Any
    updates: Any


def parameters(dtype=jnp.float32, *, names=SOME, seed: int = 0):
    """Parameters with the leaves that techniques tell apart: kernels of all shapes, vectors, a scalar."""
    return _cast(_normal(seed), names, dtype)


def gradients(dtype=jnp.float32, *, names=SOME, seed: int = 1):
    """One gradient tree a step, of varying size.

    Those of `mlp/up/kernel` are nearly orthogonal to each output column of the weight, as when a
    normalisation follows: methods that look for scale-invariant weights find one. That of the scalar has the sign of
    its weight in every other step, so that methods which compare signs meet both cases.
    """
    trees = []
    for step, size in zip(range(STEPS), itertools.cycle((1.0, 2.0, 0.5)), strict=False):
        tree = jax.tree.map(lambda g, size=size: size * g, _normal(100 * seed + step))
        w, g = _normal(0)["mlp"]["up"]["kernel"], tree["mlp"]["up"]["kernel"]
        along = np.sum(g * w, axis=0) / np.sum(w * w, axis=0)
        tangent = g - along * w
        radial = 0.03 / np.sqrt(w.shape[0]) * np.linalg.norm(tangent, axis=0) / np.linalg.norm(w, axis=0)
        tree["mlp"]["up"]["kernel"] = tangent + radial * w
        tree["temperature"] = np.copysign(tree["temperature"], (-1) ** step * _normal(0)["temperature"])
        trees.append(_cast(tree, names, dtype))
    return trees


@functools.cache
def _normal_leaves(seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    shapes = jax.tree.leaves(SHAPES, is_leaf=lambda node: isinstance(node, tuple))
    return tuple(np.asarray(rng.standard_normal(shape)) for shape in shapes)


def _normal(seed: int):
    treedef = jax.tree.structure(SHAPES, is_leaf=lambda node: isinstance(node, tuple))
    return jax.tree.unflatten(treedef, _normal_leaves(seed))


def _cast(tree, names, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), {name: tree[name] for name in names})


def updates_of(moments):
    """The updates of each step of a run."""
    return [moment.updates for moment in moments]


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A transformation under test: the factory, its arguments and what it promises.

    Attributes:
      make: The factory.
      arguments: Positional arguments of the factory.
      keywords: Keyword arguments of the factory.
      traits: What the transformation promises.
    """

    make: Callable[..., optax.GradientTransformation]
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    traits: Traits = dataclasses.field(default_factory=Traits)

    @property
    def name(self) -> str:
        """The name of the factory, as it should appear in its errors."""
        make = self.make
        while isinstance(make, functools.partial):
            make = make.func
        return getattr(make, "__name__", type(make).__name__)

    def build(self, **changes) -> optax.GradientTransformation:
        """Calls the factory, with some arguments changed."""
        bound = inspect.signature(self.make).bind_partial(*self.arguments, **self.keywords)
        bound.arguments.update(changes)
        return self.make(*bound.args, **bound.kwargs)

    def argument(self, name: str):
        """The value of an argument of the factory, its default included."""
        bound = inspect.signature(self.make).bind(*self.arguments, **self.keywords)
        bound.apply_defaults()
        return bound.arguments.get(name)

    @functools.cached_property
    def transform(self) -> optax.GradientTransformationExtraArgs:
        """The transformation, built once."""
        return optax.with_extra_args_support(self.build())

    def extras(self, value) -> dict[str, Any]:
        """The extra arguments that `update` requires, given the loss."""
        return {"value": jnp.asarray(value, jnp.float32)} if self.traits.needs_value else {}

    def update(self, state, updates, params, value=LOSSES[0], transform=None):
        """`transform.update` with what it requires; returns the updates and the state."""
        transform = optax.with_extra_args_support(transform or self.transform)
        return transform.update(updates, state, params, **self.extras(value))

    def advance(self, transform=None) -> Callable[..., Moment]:
        """A function `(params, state, gradients, value) -> Moment` which takes one step.

        Checks run it operation by operation, unless they ask about compiled code: values are the same (which
        `check_jit_equals_eager` makes sure of), and compiling each variant would take most of the time.
        """
        size = 1.0 if self.traits.has_learning_rate else STEP_SIZE

        def step(params, state, gradients, value):
            updates, state = self.update(state, gradients, params, value, transform)
            return Moment(jax.tree.map(lambda p, u: p + size * u, params, updates), state, updates)

        return step

    def run(self, transform=None, *, params=None, grads=None, step=None) -> list[Moment]:
        """Runs a transformation built around the subject's (default: that one) for a few steps."""
        params = parameters() if params is None else params
        grads = gradients() if grads is None else grads
        step = step or self.advance(transform)
        state = (transform or self.transform).init(params)
        moments = []
        for tree, value in zip(grads, LOSSES, strict=False):
            moments.append(step(params, state, tree, value))
            params, state = moments[-1].params, moments[-1].state
        return moments

    @functools.cached_property
    def reference(self) -> tuple[Moment, ...]:
        """The run that other ways of computing the same must agree with."""
        return tuple(self.run())

    @functools.cached_property
    def whole_reference(self) -> tuple[Moment, ...]:
        """The same run on the whole tree."""
        return tuple(self.run(params=parameters(names=EVERYTHING), grads=gradients(names=EVERYTHING)))

    @functools.cached_property
    def terminal(self) -> optax.GradientTransformationExtraArgs:
        """The transformation with a learning rate behind it, unless it has its own."""
        if self.traits.has_learning_rate:
            return self.transform
        return optax.chain(self.transform, optax.scale_by_learning_rate(self.traits.learning_rate))
