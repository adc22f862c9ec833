"""Turns whatever the user gave as `routing=` into one rule a leaf."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from momentax.leaves import leaf_path
from momentax.routing._flax import flax
from momentax.routing._rules import Rule, RuleSet, Shapes

Routing = Callable[[str, Any], Rule | None] | Mapping[str, Rule] | Rule | RuleSet


def resolve(function: str, params: Any, routing: Routing | None = None) -> list[Rule]:
    """One rule for each leaf of `params`, in flattening order, with axes counted from the front.

    Args:
      function: name of the public function that needs the rules, for errors.
      params: tree of arrays or of shapes.
      routing: None for the conventions of Flax; a dict from path patterns (`blocks/*/kernel`; `*` also crosses
        slashes, the first match wins) to rules; a function of (path, leaf); or one rule for every leaf of rank 2
        and more. What a dict or a function (returning None) leaves open falls to the conventions of Flax.

    Raises:
      ValueError: a leaf whose rule cannot be told, or whose stated axes do not partition it.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.zeros((3, 4))}, "w": jnp.zeros((2, 3, 4))}
      >>> rules = resolve("adamp", params, {"w": Rule("matrix", (1,), (2,), (0,))})
      >>> [rule.out_axes for rule in rules]
      [(1,), (2,)]
    """
    rules = []
    for path, leaf, rule in assigned(params, routing):
        if isinstance(rule, str):
            raise ValueError(
                f"{function}: the axes of leaf '{path}' {jnp.shape(leaf)} cannot be told: {advice(path, rule)}"
            )
        rules.append(rule)
    return rules


def advice(path: str, why: str) -> str:
    """Why a leaf is refused and how to state its rule."""
    return (
        f"{why}. State it, for example routing={{'{path}': momentax.routing.matrix(in_axes=(0,), out_axes=(1, 2))}}, "
        "with batch_axes= for stacked layers; routing.flax(stacked='blocks') states it for a whole scanned stack. "
        "Inside optax.masked or optax.partition only the leaves shown there are seen, without the biases beside them."
    )


def assigned(params: Any, routing: Routing | None) -> list[tuple[str, Any, Rule | str]]:
    """(path, leaf, rule or why there is none) for each leaf of a tree of arrays or shapes."""
    if isinstance(routing, Mapping):
        for pattern, rule in routing.items():
            if not isinstance(rule, Rule):
                raise TypeError(f"routing: the rule of '{pattern}' must be a momentax.routing.Rule; got {rule!r}.")
    flat = [(leaf_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    shapes = {path: jnp.shape(leaf) for path, leaf in flat}
    return [(path, leaf, _normalise(path, leaf, _assign(path, leaf, shapes, routing))) for path, leaf in flat]


def _assign(path: str, leaf: Any, shapes: Shapes, routing: Routing | None) -> Rule | str:
    rule: Rule | None = None
    if isinstance(routing, Rule):
        rule = routing if len(shapes[path]) > 1 else None
    elif isinstance(routing, Mapping):
        rule = next((rule for pattern, rule in routing.items() if fnmatch.fnmatchcase(path, pattern)), None)
    elif isinstance(routing, RuleSet):
        return routing.rule(path, shapes[path], shapes)
    elif routing is flax:
        raise TypeError("routing: momentax.routing.flax is a function that makes a rule set: write routing.flax().")
    elif callable(routing):
        rule = routing(path, leaf)
    elif routing is not None:
        raise TypeError(
            f"routing: give a dict of path patterns, a function of (path, leaf), a Rule or a rule set; got {routing!r}."
        )
    if rule is not None and not isinstance(rule, Rule):
        raise TypeError(f"routing: the rule of leaf '{path}' must be a momentax.routing.Rule; got {rule!r}.")
    return flax().rule(path, shapes[path], shapes) if rule is None else rule


def _normalise(path: str, leaf: Any, rule: Rule | str) -> Rule | str:
    """The rule with axes counted from the front, checked to partition the leaf."""
    if isinstance(rule, str):
        return rule
    rank = jnp.ndim(leaf)
    fields = {name: getattr(rule, name) for name in ("in_axes", "out_axes", "batch_axes")}
    fields = {name: tuple(axis + rank if axis < 0 else axis for axis in axes) for name, axes in fields.items()}
    used = [axis for axes in fields.values() for axis in axes]
    complete = rule.kind == "vector" or sorted(used) == list(range(rank))
    if not complete or len(set(used)) < len(used) or any(not 0 <= axis < rank for axis in used):
        raise ValueError(
            f"routing: the axes of leaf '{path}' of shape {jnp.shape(leaf)} are not partitioned by in_axes="
            f"{rule.in_axes}, out_axes={rule.out_axes}, batch_axes={rule.batch_axes}: name every axis once."
        )
    return Rule(rule.kind, **fields, reason=rule.reason)
