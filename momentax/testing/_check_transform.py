"""All checks for one transformation, in one call."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import optax

from momentax.testing import (
    _contract,
    _degenerate,
    _errors,
    _learning,
    _persistence,
    _placement,
    _purity,
    _text,
    _tree,
    _types,
)
from momentax.testing._subject import Subject
from momentax.testing._traits import Traits

PLAIN = Traits()
GROUPS = (_contract, _errors, _types, _purity, _tree, _degenerate, _placement, _persistence, _learning, _text)


def checks_for(traits: Traits) -> list[tuple[str, Callable[[Subject], None]]]:
    """The checks that a transformation with these traits must pass.

    Args:
      traits: What the transformation promises.

    Returns:
      Pairs of a name and a function that takes a `Subject` and raises `AssertionError`.

    Example:
      >>> names = [name for name, check in checks_for(Traits(needs_params=True))]
      >>> "names_missing_params" in names, "works_without_params" in names
      (True, False)
    """
    checks = []
    for group in GROUPS:
        for name, check in vars(group).items():
            if name.startswith("check_") and getattr(check, "applies", lambda _: True)(traits):
                checks.append((name.removeprefix("check_"), check))
    return checks


def check_transform(
    make: Callable[..., optax.GradientTransformation],
    *args: Any,
    traits: Traits = PLAIN,
    expected_failures: Mapping[str, str] = MappingProxyType({}),
    **kwargs: Any,
) -> None:
    """Checks that a gradient transformation keeps the promises of its traits.

    It must compose with Optax, keep dtypes, be a pure function, take any parameter tree, survive degenerate
    gradients, give the same numbers on every mesh and after a checkpoint, and learn. The placement checks
    need eight devices, the persistence checks Flax and Orbax.

    Args:
      make: The factory, called as `make(*args, **kwargs)`; some checks call it again with other values.
      *args: Positional arguments of the factory.
      traits: What the transformation promises; see `Traits`.
      expected_failures: For each check known to fail, by name, the reason. One that passes is a failure.
      **kwargs: Keyword arguments of the factory.

    Raises:
      AssertionError: Naming each failing check, what it asks for and what was found.

    Example:
      >>> import jax, optax
      >>> jax.config.update("jax_num_cpu_devices", 8)
      >>> def halve(factor=0.5):
      ...     return optax.with_extra_args_support(optax.scale(factor))
      >>> traits = Traits(has_state=False, complex_ok=True)
      >>> reason = {"names_an_integer_leaf": "optax.scale takes any dtype"}
      >>> check_transform(halve, traits=traits, expected_failures=reason)
    """
    subject = Subject(make, args, kwargs, traits)
    checks = checks_for(traits)
    unknown = sorted(set(expected_failures) - {name for name, _ in checks})
    problems = [f"{name}: expected to fail, but these traits call for no such check" for name in unknown]
    for name, check in checks:
        try:
            check(subject)
        except Exception as error:
            if name not in expected_failures:
                problems.append(f"{name}: {check.__doc__}\n    {type(error).__name__}: {error}")
        else:
            if name in expected_failures:
                problems.append(f"{name}: passes, expected to fail ({expected_failures[name]}): drop the entry")
    listing = "\n  ".join(problems)
    if problems:
        raise AssertionError(f"{subject.name} fails {len(problems)} of {len(checks)} checks:\n  {listing}")
