"""Turns whatever the user gave as `routing=` into one rule a leaf."""

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from momentax.paths import is_part, named_leaves, paths_of
from momentax.routing._dimension_numbers import DimensionNumbers, holds_numbers, rules_of
from momentax.routing._equinox import equinox
from momentax.routing._flax import flax
from momentax.routing._heads import state_head
from momentax.routing._rules import Rule, RuleSet, Shapes

Stated = Rule | RuleSet | None
Routing = Callable[[str, Any], Stated] | Mapping[str, Rule | RuleSet] | Rule | RuleSet | DimensionNumbers

_DEFAULT = flax()


def resolve(
    function: str,
    params: Any,
    routing: Routing | None = None,
    *,
    head: str | None = None,
    certain: bool = False,
    strict: bool = False,
) -> list[Rule]:
    """One rule for each leaf of `params`, in flattening order, with axes counted from the front.

    Args:
      function: name of the public function that needs the rules, for errors.
      params: tree of arrays or of shapes.
      routing: None for the conventions of Flax; a rule set; a dict from path patterns (`blocks/*/kernel`; `*` also
        crosses slashes, the first match wins) to rules or rule sets; a function of (path, leaf) to such; one rule for
        every leaf of rank 2 and more; or a tree of optax's `MuonDimensionNumbers`. What a dict or a function (returning
        None) leaves open falls to the conventions of Flax: a last entry "*": momentax.routing.equinox() changes that.
      head: pattern of whole paths: the matrices that match are output heads, whatever `routing` says. None adds none.
      certain: whether leaves are refused that may not be the matrix they are read as (`Rule.doubt`).
      strict: whether patterns of a dict are refused that match no leaf: for those who see the whole tree.

    Raises:
      ValueError: a leaf whose rule cannot be told, or whose stated axes or blocks do not divide it, or a `head` that
        matches no leaf.
      TypeError: routing or head of another kind.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.zeros((3, 4))}, "w": jnp.zeros((2, 3, 4))}
      >>> rules = resolve("adamp", params, {"w": Rule("matrix", (1,), (2,), (0,))}, head="dense/*")
      >>> [(rule.kind, rule.out_axes) for rule in rules]
      [('head', (1,)), ('matrix', (2,))]
    """
    if strict and (missed := unmatched(params, routing)):
        raise ValueError(
            f"{function}: the pattern '{missed[0]}' of routing matches no leaf: give a pattern of whole paths; "
            "print(momentax.routing.explain(params)) lists them."
        )
    rules = []
    for path, leaf, rule in state_head(function, assigned(params, routing), head):
        if isinstance(rule, str):
            raise ValueError(
                f"{function}: the axes of leaf '{path}' {jnp.shape(leaf)} cannot be told: {advice(path, rule, routing)}"
            )
        if certain and rule.doubt:
            raise ValueError(
                f"{function}: leaf '{path}' {jnp.shape(leaf)} may be no single matrix: "
                f"{doubt_advice(path, rule, routing)}"
            )
        rules.append(rule)
    return rules


def unmatched(params: Any, routing: Routing | None) -> list[str]:
    """Patterns of a dict, other than "*", that match no leaf of a tree that has some and hides none."""
    paths = paths_of(params)
    if not paths or is_part(params) or not isinstance(routing, Mapping) or holds_numbers(routing):
        return []
    return [p for p in routing if p != "*" and not any(fnmatch.fnmatchcase(path, p) for path in paths)]


def advice(path: str, why: str, routing: Routing | None) -> str:
    """Why a leaf is refused and how to state its rule."""
    return (
        f"{why}. State it, for example {_entry(path, 'in_axes=(0,), out_axes=(1, 2)', routing)}, "
        "with batch_axes= for stacked layers; routing.flax(stacked='blocks') or routing.equinox(stacked='blocks') "
        "states it for a whole stack. "
        "Inside optax.masked or optax.partition only the leaves shown there are seen, without the biases beside them."
    )


def doubt_advice(path: str, rule: Rule, routing: Routing | None) -> str:
    """Why a leaf may be no matrix and how to say what it is."""
    named = (("in_axes", rule.in_axes), ("out_axes", rule.out_axes), ("batch_axes", rule.batch_axes))
    axes = ", ".join(f"{name}={axes}" for name, axes in named if axes)
    return (
        f"{rule.doubt}. Matrix methods take it once it is stated: {_entry(path, axes, routing)}; "
        "momentax.routing.vector() or momentax.routing.embedding() there leaves it to the method for the rest."
    )


def _entry(path: str, axes: str, routing: Routing | None) -> str:
    others = ", '*': <the rule set you give now>" if isinstance(routing, RuleSet) else ""
    return f"routing={{'{path}': momentax.routing.matrix({axes}){others}}}"


def assigned(params: Any, routing: Routing | None) -> list[tuple[str, Any, Rule | str]]:
    """(path, leaf, rule or why there is none) for each leaf of a tree of arrays or shapes."""
    routing = _checked(routing, params)
    flat = named_leaves(params)
    shapes = {path: jnp.shape(leaf) for path, leaf in flat}
    return [(path, leaf, _normalise(path, leaf, _assign(path, leaf, shapes, routing))) for path, leaf in flat]


def _checked(routing: Any, params: Any) -> Any:
    """The routing as a rule, a rule set, a dict of them or a function; anything else raises."""
    if isinstance(routing, DimensionNumbers):
        return rules_of(routing.numbers, params)
    if routing is None or isinstance(routing, (Rule, RuleSet)):
        return _DEFAULT if routing is None else routing
    if holds_numbers(routing):
        return rules_of(routing, params)
    if isinstance(routing, Mapping):
        for pattern, rule in routing.items():
            if not isinstance(rule, (Rule, RuleSet)):
                raise TypeError(f"routing: the rule of '{pattern}' must be a momentax.routing.Rule; got {rule!r}.")
        return routing
    if routing is flax or routing is equinox:
        name = routing.__name__
        raise TypeError(f"routing: momentax.routing.{name} makes a rule set: write momentax.routing.{name}().")
    if not callable(routing):
        raise TypeError(
            f"routing: give a dict of path patterns, a function of (path, leaf), a Rule or a rule set; got {routing!r}."
        )
    try:
        inspect.signature(routing).bind("", None)
    except TypeError:
        raise TypeError(
            "routing: a function must take (path, leaf); one from parameters to MuonDimensionNumbers goes through "
            "momentax.routing.muon_dimension_numbers."
        ) from None
    return routing


def _assign(path: str, leaf: Any, shapes: Shapes, routing: Any) -> Rule | str:
    rule: Stated
    if isinstance(routing, Rule):
        rule = routing if len(shapes[path]) > 1 else None
    elif isinstance(routing, RuleSet):
        rule = routing
    elif isinstance(routing, Mapping):
        rule = next((rule for pattern, rule in routing.items() if fnmatch.fnmatchcase(path, pattern)), None)
    else:
        rule = routing(path, leaf)
    rule = _DEFAULT if rule is None else rule
    if isinstance(rule, RuleSet):
        return rule.rule(path, shapes[path], shapes)
    if not isinstance(rule, Rule):
        raise TypeError(f"routing: the rule of leaf '{path}' must be a momentax.routing.Rule; got {rule!r}.")
    return rule


def _normalise(path: str, leaf: Any, rule: Rule | str) -> Rule | str:
    """The rule with axes counted from the front, checked to partition the leaf."""
    if isinstance(rule, str):
        return rule
    shape = jnp.shape(leaf)
    rank = len(shape)
    fields = {name: getattr(rule, name) for name in ("in_axes", "out_axes", "batch_axes")}
    fields = {name: tuple(axis + rank if axis < 0 else axis for axis in axes) for name, axes in fields.items()}
    used = [axis for axes in fields.values() for axis in axes]
    complete = rule.kind == "vector" or sorted(used) == list(range(rank))
    if not complete or len(set(used)) < len(used) or any(not 0 <= axis < rank for axis in used):
        raise ValueError(
            f"routing: the axes of leaf '{path}' of shape {shape} are not partitioned by in_axes="
            f"{rule.in_axes}, out_axes={rule.out_axes}, batch_axes={rule.batch_axes}: name every axis once."
        )
    if rule.blocks != 1:
        width = shape[fields["out_axes"][-1]] if fields["out_axes"] else 0
        if not isinstance(rule.blocks, int) or rule.blocks < 1 or not width or width % rule.blocks:
            raise ValueError(
                f"routing: leaf '{path}' of shape {shape} cannot be cut into blocks={rule.blocks!r} along the last of "
                f"out_axes={rule.out_axes}: give a positive integer that divides that axis."
            )
    return dataclasses.replace(rule, **fields)
