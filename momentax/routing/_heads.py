"""Output heads: which matrix gives the logits stands in its name alone."""

import dataclasses
import fnmatch
from collections.abc import Callable

from momentax.routing._names import head_above
from momentax.routing._rules import Rule, Shapes

Reading = Callable[[str, tuple[int, ...], Shapes], Rule | str]


def heads_named(read: Reading, pattern: str | None) -> Reading:
    """`read`, with the matrices that match the pattern, or lie under the name of a head, as heads."""
    _check("routing", pattern)

    def named(path: str, shape: tuple[int, ...], shapes: Shapes) -> Rule | str:
        rule = read(path, shape, shapes)
        if isinstance(rule, str) or rule.kind != "matrix":
            return rule
        if pattern is not None and fnmatch.fnmatchcase(path, pattern):
            return _stated(rule, pattern)
        name = head_above(path, shapes)
        return dataclasses.replace(rule, kind="head", reason=f"{rule.reason}; head: '{name}'") if name else rule

    return named


def state_head(function: str, table: list, pattern: str | None) -> list:
    """The (path, leaf, rule) of a tree, with the matrices that match the pattern as heads."""
    _check(function, pattern)
    if pattern is None:
        return table
    hits = [fnmatch.fnmatchcase(path, pattern) and isinstance(rule, Rule) and rule.is_matrix for path, _, rule in table]
    if table and not any(hits):
        raise ValueError(
            f"{function}: head='{pattern}' matches no matrix: give a pattern of whole paths, such as 'lm_head/*'; "
            "print(momentax.routing.explain(params)) lists them."
        )
    return [
        (path, leaf, _stated(rule, pattern) if hit else rule)
        for hit, (path, leaf, rule) in zip(hits, table, strict=True)
    ]


def _stated(rule: Rule, pattern: str) -> Rule:
    return dataclasses.replace(rule, kind="head", reason=f"{rule.reason}; stated by head='{pattern}'", doubt="")


def _check(function: str, pattern: str | None) -> None:
    if pattern is not None and not isinstance(pattern, str):
        raise TypeError(f"{function}: `head` must be a path pattern such as 'lm_head/*', or None; got {pattern!r}.")
