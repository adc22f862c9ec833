"""Rules stated as optax states them: a tree of `optax.contrib.MuonDimensionNumbers`."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax

from momentax.paths import named_leaves
from momentax.routing._rules import Rule, RuleSet, Shapes


@dataclasses.dataclass(frozen=True)
class DimensionNumbers:
    """What `muon_dimension_numbers` returns.

    Attributes:
      numbers: the tree, or the function that makes it from the parameters.
    """

    numbers: Any


def muon_dimension_numbers(numbers: Any | Callable[[Any], Any]) -> DimensionNumbers:
    """Rules from a tree of `optax.contrib.MuonDimensionNumbers`, as a value for `routing=`.

    Axes that a leaf's numbers leave out are batch axes; a leaf of None is no matrix, here a vector. A tree may also be
    given to `routing=` as it is. A function of the parameters may not, since functions given there take (path, leaf).

    Args:
      numbers: such a tree, like the parameters or a prefix, or a function from the parameters to one.

    Example:
      >>> import jax.numpy as jnp, momentax, optax
      >>> numbers = {"mixer": optax.contrib.MuonDimensionNumbers(1, (2, 3)), "bias": None}
      >>> params = {"mixer": jnp.zeros((6, 4, 2, 3)), "bias": jnp.zeros(4)}
      >>> rules = momentax.routing.resolve("muon", params, momentax.routing.muon_dimension_numbers(numbers))
      >>> [(rule.kind, rule.batch_axes) for rule in rules]
      [('vector', ()), ('matrix', (0,))]
    """
    if not callable(numbers) and not holds_numbers(numbers):
        raise TypeError(
            "muon_dimension_numbers: give a tree of optax.contrib.MuonDimensionNumbers and None, or a function from "
            f"parameters to one; got {numbers!r}."
        )
    return DimensionNumbers(numbers)


def holds_numbers(tree: Any) -> bool:
    """Whether a tree has at least one leaf of dimension numbers."""
    return any(_is_numbers(leaf) for leaf in jax.tree.leaves(tree, is_leaf=_is_numbers))


def rules_of(numbers: Any, params: Any) -> RuleSet:
    """The rule set of a tree of dimension numbers, or of a function that makes one."""
    if callable(numbers) and not holds_numbers(numbers):  # an Equinox module of numbers may be callable, too
        numbers = numbers(params)
    stated = dict(named_leaves(numbers, lambda node: node is None or _is_numbers(node)))

    def rule(path: str, shape: tuple[int, ...], shapes: Shapes) -> Rule | str:
        keys = path.split("/")
        above = ["/".join(keys[:depth]) for depth in range(len(keys), -1, -1)]
        found = next((prefix for prefix in above if prefix in stated), None)
        if found is None:
            raise ValueError(
                f"routing: there are no dimension numbers for leaf '{path}' {shape}: give a MuonDimensionNumbers, or "
                "None where it is no matrix."
            )
        return _rule(path, shape, stated[found])

    return RuleSet(rule)


def _rule(path: str, shape: tuple[int, ...], numbers: Any) -> Rule:
    if numbers is None:
        return Rule("vector", reason="None among MuonDimensionNumbers: no matrix")
    if not _is_numbers(numbers):
        raise TypeError(
            f"routing: what is given for leaf '{path}' must be a MuonDimensionNumbers or None; got {numbers!r}."
        )
    rank, ins, outs = len(shape), _axes(numbers.reduction_axis), _axes(numbers.output_axis)
    if rank < 2:
        raise ValueError(f"routing: leaf '{path}' {shape} is no matrix and has MuonDimensionNumbers: give None for it.")
    named = {axis % rank for axis in (*ins, *outs)}
    batch = tuple(axis for axis in range(rank) if axis not in named)
    return Rule("matrix", ins, outs, batch, reason="MuonDimensionNumbers")


def _axes(axes: Any) -> tuple[int, ...]:
    return tuple(map(operator.index, axes)) if isinstance(axes, (tuple, list)) else (operator.index(axes),)


def _is_numbers(node: Any) -> bool:
    return hasattr(node, "reduction_axis") and hasattr(node, "output_axis")
