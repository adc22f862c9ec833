"""Finds the public factories, so that forgetting a row, a glossary entry or a table line is impossible."""

import inspect
from collections.abc import Callable

import optax

import momentax


def public_spaces() -> dict[str, object]:
    """The root module and its public submodules, by dotted name."""
    modules = {f"momentax.{name}": member for name, member in vars(momentax).items() if inspect.ismodule(member)}
    public = {name: module for name, module in modules.items() if module.__name__ == name and "._" not in name}
    rooms = ("momentax.optimizers", "momentax.transforms", "momentax.wrappers")  # their names are at the root
    inside = ("momentax.decaying", "momentax.matrices")
    return {"momentax": momentax, **{name: module for name, module in public.items() if name not in rooms + inside}}


def public_factories() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Public functions annotated as returning a transformation, by dotted name."""
    found = {}
    for space, module in public_spaces().items():
        for name, member in vars(module).items():
            if inspect.isfunction(member) and not name.startswith("_") and "GradientTransformation" in _returns(member):
                found[f"{space}.{name}"] = member
    return found


def _returns(function: Callable[..., object]) -> str:
    return str(inspect.signature(function).return_annotation)
