"""Stacks of layers that are stated: the rules see the leaves of one layer."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

from momentax.routing._heads import Reading
from momentax.routing._rules import Rule, Shapes


def stacks_stated(read: Reading, pattern: str | None, axis: int) -> Reading:
    """`read` on each layer of the leaves whose paths the regular expression finds, stacked along `axis`."""
    if pattern is None:
        return read
    search = re.compile(pattern).search

    def stacked(path: str, shape: tuple[int, ...], shapes: Shapes) -> Rule | str:
        if not search(path) or not -len(shape) <= axis < len(shape):
            return read(path, shape, shapes)
        rule = read(path, _without(shape, axis), _Layer(shapes, search, axis))
        if isinstance(rule, str):
            return f"{rule}, in each layer along axis {axis}"
        front = axis % len(shape)
        ins, outs, batch = (
            tuple(a + (a >= front) for a in axes) for axes in (rule.in_axes, rule.out_axes, rule.batch_axes)
        )
        reason = f"{rule.reason}; stacked on axis {front}"
        return dataclasses.replace(
            rule, in_axes=ins, out_axes=outs, batch_axes=tuple(sorted((front, *batch))), reason=reason
        )

    return stacked


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    if not -len(shape) <= axis < len(shape):
        return shape
    return tuple(size for a, size in enumerate(shape) if a != axis % len(shape))


class _Layer(Mapping[str, tuple[int, ...]]):
    """The shapes of one layer, each found when asked for: most leaves ask for their bias alone."""

    def __init__(self, shapes: Shapes, search: Callable[[str], object], axis: int):
        self.shapes, self.search, self.axis = shapes, search, axis

    def __getitem__(self, path: str) -> tuple[int, ...]:
        shape = self.shapes[path]
        return _without(shape, self.axis) if self.search(path) else shape

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
