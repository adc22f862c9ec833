"""What a row is."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax

import momentax
from momentax.testing import Subject, Traits


@dataclasses.dataclass(frozen=True)
class Case:
    """A row: a public name, the factory behind it, keyword arguments, traits, expected failures with reasons.

    What takes matrices alone (`only_matrices`) is run on those of a tree, beside Adam for the rest.
    """

    name: str
    factory: Callable[..., optax.GradientTransformation]
    arguments: Mapping[str, Any]
    traits: Traits
    expected_failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    only_matrices: bool = False

    def subject(self) -> Subject:
        """What the checks take; every technique of the library is documented."""
        make = _on_matrices(self.factory) if self.only_matrices else self.factory
        return Subject(make, (), self.arguments, dataclasses.replace(self.traits, documented=True))


def _on_matrices(factory: Callable[..., optax.GradientTransformation]) -> Callable[..., optax.GradientTransformation]:
    @functools.wraps(factory)
    def make(*positional, **arguments):
        def matrices(routing):
            return factory(*positional, **{"routing": routing, **arguments})

        return momentax.partition_by_rule({"matrix": matrices, "rest": momentax.scale_by_adam()})

    return make


MATRICES_AS_THEY_ARE = momentax.partition_by_rule({"matrix": optax.identity(), "rest": momentax.scale_by_adam()})


def halves(path, leaf):
    """Blocks that lie the same way on every mesh: each axis of even length in two."""
    del path
    return [1 if length % 2 else 2 for length in leaf.shape]
