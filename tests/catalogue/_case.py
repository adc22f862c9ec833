"""What a row is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from momentax.testing import Subject, Traits


@dataclasses.dataclass(frozen=True)
class Case:
    """A row: a public name, the factory behind it, keyword arguments, traits, expected failures with reasons."""

    name: str
    factory: Callable[..., optax.GradientTransformation]
    arguments: Mapping[str, Any]
    traits: Traits
    expected_failures: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def subject(self) -> Subject:
        """What the checks take; every technique of the library is documented."""
        return Subject(self.factory, (), self.arguments, dataclasses.replace(self.traits, documented=True))
