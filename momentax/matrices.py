"""A tree read as matrices: which axes are inputs and outputs, and how leaves become stacks of matrices and return.

A matrix technique sees only leaves that are matrices for certain, and matrices that lie side by side along one axis
(query, key and value in one kernel, say) apart, on an axis of their own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from momentax import leaves
from momentax.paths import named_leaves
from momentax.routing import Routing, Rule, resolve
from momentax.sharding import Place, carry, distribute, place_of


@dataclasses.dataclass(frozen=True)
class Matrices:
    """How each leaf of a tree is read, in flattening order.

    Attributes:
      rules: axes of the leaves that `apart` gives.
      places: where these lie.
      fused: for each leaf its rule as routing states it.
      whole: where each leaf lies.
    """

    rules: tuple[Rule, ...]
    places: tuple[Place, ...]
    fused: tuple[Rule, ...]
    whole: tuple[Place, ...]

    def apart(self, tree: Any) -> Any:
        """The tree with matrices that lie side by side apart; None stays None."""
        return self._each(_apart, tree)

    def together(self, tree: Any) -> Any:
        """The way back from `apart`."""
        return self._each(_together, tree)

    def map(
        self,
        name: str,
        function: Callable[..., Any],
        arrays: Sequence[jax.Array],
        *,
        more: Sequence[Sequence[jax.Array]] = (),
        beside: Sequence[Sequence[jax.Array]] = (),
        **options: Any,
    ) -> Any:
        """`function` of all matrices of the leaves: `momentax.sharding.distribute`."""
        together, rules, places = self.read_whole(arrays, bool(beside))

        def each(function, xs):
            known = zip(xs, self.fused, self.whole, together, strict=True)
            return [x if t else function(x, rule, place) for x, rule, place, t in known]

        axes = [(rule.batch_axes, rule.in_axes, rule.out_axes, rule.blocks) for rule in rules]
        lists = [each(_apart, xs) for xs in (arrays, *more)]
        new = distribute(name, function, lists[0], axes, places, more=lists[1:], beside=beside, **options)
        return (each(_together, new[0]), *new[1:]) if beside else each(_together, new)

    def read_whole(self, arrays: Sequence[Any], beside: bool = False) -> tuple[list[bool], list[Rule], list[Place]]:
        """Which leaves travel with their blocks side by side, and how leaves are read and lie as they travel.

        Blocks along an axis that is sharded are apart only where they are computed, unless there are numbers `beside`.
        """
        together = [
            rule.blocks > 1 and bool(place.shards(x.ndim)[rule.out_axes[-1]]) and not beside
            for rule, place, x in zip(self.fused, self.whole, arrays, strict=True)
        ]
        rules = [fused if t else rule for fused, rule, t in zip(self.fused, self.rules, together, strict=True)]
        places = [whole if t else place for whole, place, t in zip(self.whole, self.places, together, strict=True)]
        return together, rules, places

    def fans(self, arrays: Sequence[jax.Array]) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrices of each leaf."""
        return [fans(x.shape, rule) for x, rule in zip(arrays, self.fused, strict=True)]

    def _each(self, function: Callable[..., Any], tree: Any) -> Any:
        if tree is None or all(rule.blocks == 1 for rule in self.fused):
            return tree
        flat, treedef = jax.tree.flatten(tree)
        return jax.tree.unflatten(treedef, map(function, flat, self.fused, self.whole))


def matrices(function: str, tree: Any, routing: Routing | None) -> Matrices:
    """Reads a tree whose leaves are all matrices.

    Raises:
      ValueError: a leaf that is no matrix, or whose axes cannot be told, by its name, with what to do.
    """
    leaves.check_leaves(function, tree)
    rules = resolve(function, tree, routing, certain=True)
    places = []
    for (name, leaf), rule in zip(named_leaves(tree), rules, strict=True):
        if not rule.is_matrix:
            raise ValueError(
                f"{function}: leaf '{name}' {jnp.shape(leaf)} is read as {_article(rule.kind)} ({rule.reason}), and "
                "matrices are needed: give it to another transformation with momentax.partition_by_rule, or, if it is "
                f"a matrix, say so: routing={{'{name}': momentax.routing.matrix(in_axes=..., out_axes=...)}}."
            )
        places.append(place_of(name, leaf))
    apart = tuple(map(_place_apart, places, rules))
    return Matrices(tuple(map(_rule_apart, rules)), apart, tuple(rules), tuple(places))


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _rule_apart(rule: Rule) -> Rule:
    """The axes once an axis for the blocks stands in front of the last output axis."""
    if rule.blocks == 1:
        return rule
    axis = rule.out_axes[-1]
    ins, outs, batch = (tuple(a + (a >= axis) for a in axes) for axes in (rule.in_axes, rule.out_axes, rule.batch_axes))
    return dataclasses.replace(rule, in_axes=ins, out_axes=outs, batch_axes=(*batch, axis), blocks=1)


def _place_apart(place: Place, rule: Rule) -> Place:
    """Where a leaf lies once its blocks are apart: whole along the axis that held them."""
    if rule.blocks == 1:
        return place
    axis = rule.out_axes[-1]
    return dataclasses.replace(place, spec=PartitionSpec(*place.spec[:axis], None, None, *place.spec[axis + 1 :]))


def _apart(x: jax.Array, rule: Rule, place: Place) -> jax.Array:
    if rule.blocks == 1:
        return x
    axis = rule.out_axes[-1]
    shape = (*x.shape[:axis], rule.blocks, -1, *x.shape[axis + 1 :])

    def lies(spec):
        return PartitionSpec(*spec[:axis], None, None, *spec[axis + 1 :])

    return carry(lambda x: (x.reshape(shape),), x, places=[lies])[0]


def _together(x: jax.Array, rule: Rule, place: Place) -> jax.Array:
    if rule.blocks == 1:
        return x
    axis = rule.out_axes[-1]
    shape = (*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return carry(lambda x: (x.reshape(shape),), x, places=[lambda spec: place.spec])[0]


def cut(
    x: jax.Array, rule: Rule, place: Place, parts: Sequence[int]
) -> tuple[jax.Array, Rule, Place, Callable[[jax.Array], jax.Array]]:
    """A leaf whose matrices are cut into blocks: each a matrix of its own, its axes, where it lies, and the way back.

    An axis for the parts stands in front of each axis that is cut. Shards of whole parts stay where they are, and so do
    parts of whole shards.

    Args:
      x: the leaf; lengths of its axes are multiples of `parts`.
      rule: its axes. Matrices side by side are cut where they meet, too, so that each part is of one of them.
      place: where it lies.
      parts: for each axis into how many equal parts it is cut.
    """
    shape: list[int] = []
    lies: list[tuple[str, ...]] = []
    new: list[int] = []  # axes of the parts
    at: list[int] = []  # where the axes of the leaf are now
    for axis, (length, number, names) in enumerate(zip(x.shape, parts, place.shards(x.ndim), strict=True)):
        number = math.lcm(number, rule.blocks) if axis == rule.out_axes[-1] else number
        if number > 1:
            new.append(len(shape))
            outer, names = _of_parts(names, number, place.sizes)
            shape, lies, length = [*shape, number], [*lies, outer], length // number
        at.append(len(shape))
        shape, lies = [*shape, length], [*lies, names]
    spec = PartitionSpec(*(names or None for names in lies))
    ins, outs, batch = (tuple(at[axis] for axis in axes) for axes in (rule.in_axes, rule.out_axes, rule.batch_axes))
    of_blocks = dataclasses.replace(rule, in_axes=ins, out_axes=outs, batch_axes=(*batch, *new), blocks=1)
    pieces = carry(lambda x: (x.reshape(shape),), x, places=[lambda _: spec])[0]
    whole, own = x.shape, place.spec
    back = functools.partial(carry, lambda y: (y.reshape(whole),), places=[lambda _: own])
    return pieces, of_blocks, dataclasses.replace(place, spec=spec), lambda y: back(y)[0]


def _of_parts(names: tuple[str, ...], parts: int, sizes: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mesh axes of an axis that is cut: over which whole parts are sharded, and over which each part is."""
    devices, outer = 1, 0
    while outer < len(names) and parts % (devices * sizes.get(names[outer], 1)) == 0:
        devices *= sizes.get(names[outer], 1)
        outer += 1
    return names[:outer], names[outer:] if devices == parts else ()


def fans(shape: Sequence[int], rule: Rule) -> tuple[int, int]:
    """Inputs and outputs of each matrix of a leaf."""
    fan_in, fan_out = (math.prod(shape[axis] for axis in axes) for axes in (rule.in_axes, rule.out_axes))
    return fan_in, fan_out // rule.blocks


SHAPE_SCALES = ("kj", "spectral", "moonlight", "none", "kj_last_axes", "moonlight_first_axes")


def shape_factor(scale: str, shape: Sequence[int], rule: Rule, rms: Any = 0.2) -> Any:
    """The factor of a matrix that `scale_by_matrix_shape` defines, by the number of its equation.

    Args:
      scale: one of SHAPE_SCALES.
      shape: of the leaf.
      rule: its axes.
      rms: root mean square entry that (3) gives orthogonal matrices.
    """
    fan_in, fan_out = fans(shape, rule)
    if not fan_in or not fan_out:
        return 1.0  # of no entries
    if scale == "kj":
        return math.sqrt(max(1, fan_out / fan_in))  # (1)
    if scale == "spectral":
        return math.sqrt(fan_out / fan_in)  # (2)
    if scale == "moonlight":
        return rms * math.sqrt(max(fan_out, fan_in))  # (3)
    if scale == "kj_last_axes":
        return math.sqrt(max(1, shape[-2] / shape[-1]))
    if scale == "moonlight_first_axes":
        return rms * math.sqrt(max(shape[:2]))
    return 1.0  # (4)
