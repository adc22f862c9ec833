"""A tree read as matrices: which axes are inputs and outputs, and how leaves become stacks of matrices and return.

A matrix technique sees only leaves that are matrices for certain, and matrices that lie side by side along one axis
(query, key and value in one kernel, say) apart, on an axis of their own.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from momentax import leaves
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

    def map(self, name: str, function: Callable[[jax.Array], jax.Array], arrays: Sequence[jax.Array], **options: Any):
        """`function` of all matrices of the leaves that `apart` gives: `momentax.sharding.distribute`."""
        axes = [(rule.batch_axes, rule.in_axes, rule.out_axes) for rule in self.rules]
        return distribute(name, function, arrays, axes, self.places, **options)

    def fans(self, arrays: Sequence[jax.Array]) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrices of each leaf that `apart` gives."""
        return [fans(x.shape, rule) for x, rule in zip(arrays, self.rules, strict=True)]

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
    for (path, leaf), rule in zip(jax.tree_util.tree_leaves_with_path(tree), rules, strict=True):
        name = leaves.leaf_path(path)
        if not rule.is_matrix:
            raise ValueError(
                f"{function}: leaf '{name}' {jnp.shape(leaf)} is read as {_article(rule.kind)} ({rule.reason}), and "
                "matrices are needed: give it to another transformation with momentax.partition_by_rule, or, if it is "
                f"a matrix, say so: routing={{'{name}': momentax.routing.matrix(in_axes=..., out_axes=...)}}."
            )
        places.append(place_of(name, leaf) if isinstance(leaf, jax.Array) else Place())
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


def fold(x: jax.Array, rule: Rule, place: Place) -> tuple[jax.Array, Place, Callable[[jax.Array], jax.Array]]:
    """The leaf as matrices (stack, in, out), where they lie, and the way back."""
    groups = (rule.batch_axes, rule.in_axes, rule.out_axes)
    there, back = leaves.folding(x.shape, groups)
    lies = place.shards(x.ndim)
    merged = PartitionSpec(*(tuple(name for axis in group for name in lies[axis]) or None for group in groups))
    stack = carry(lambda x: (there(x),), x, places=[lambda _: merged])[0]
    place_of_stack = dataclasses.replace(place, spec=merged)
    return stack, place_of_stack, lambda y: carry(lambda y: (back(y),), y, places=[lambda _: place.spec])[0]


def map_stacks(
    name: str,
    function: Callable[[jax.Array], jax.Array],
    stacks: Sequence[jax.Array],
    places: Sequence[Place],
    **options: Any,
) -> list[jax.Array]:
    """`function` of all matrices of what `fold` gives: `momentax.sharding.distribute`."""
    return distribute(name, function, stacks, [((0,), (1,), (2,))] * len(stacks), places, **options)


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
