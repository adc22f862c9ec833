"""Orthogonalisation of whole matrices now and then, and between of their blocks, which need not meet.

    U   = s(m, n) O(M),             t mod P = 0                       (1)  orthogonalize, scale_by_matrix_shape
    U_b = s(m_b, n_b) O(M_b),       otherwise, for each block b       (2)
    |U|_2 <= sqrt(k) max_b |U_b|_2                                    (3)  for k blocks, in the steps of (2)

M: incoming update, read as matrices (m, n) by `routing`, each of a stack alone; M_b: its blocks (m_b, n_b); t: steps
taken; P: `period`; O: `momentax.orthogonalize`; s: factor of the shape, `scale`; "moonlight" gives whole matrices and
blocks one root mean square. Matrices that lie side by side in one leaf are apart in (2) as in (1).

The blocks of a leaf are its shards, unless `blocks` states others. So the same program does something else on another
mesh, and (1) in every step where a leaf is not sharded or nobody can tell how (see `momentax.on_mesh`). With blocks
that are stated, numbers do not depend on the mesh.

Where blocks lie whole on devices, (2) needs no communication; devices that hold copies of a block each compute it.

Contract: transform.
Source: Khaled, Ozkara, Yu, Hong & Park, MuonBP: Faster Muon via Block-Periodic Orthogonalization, ICLR 2026, arXiv
2510.16981.
Departure: of the paper only the abstract and what others wrote about it could be read: (1) and (2) are as told there,
the choice of "moonlight" for s is ours, and so is that (1) comes first, at t = 0. Its two learning rates are those of
`momentax.muon_bp`.
Zero gives zero. A matrix or block with an entry that is not finite becomes NaN; the others do not notice.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves
from momentax.matrices import Matrices, cut, matrices, shape_factor
from momentax.paths import named_leaves, paths_of
from momentax.routing import Routing, Rule
from momentax.sharding import stating
from momentax.transforms._orthogonalize import Method, OrthogonalizeState, orthogonalize
from momentax.typing import Count, Updates

NAME = "orthogonalize_blocks"
Blocks = tuple[int, int] | Callable[[str, Any], Sequence[int] | None] | None


class OrthogonalizeBlocksState(NamedTuple):
    """State of `orthogonalize_blocks`.

    Attributes:
      count: steps taken, int32 scalar.
    """

    count: Count


def orthogonalize_blocks(
    period: int | None = 5,
    method: Method = "muon",
    steps: int = 5,
    eps: float | None = 1e-7,
    *,
    blocks: Blocks = None,
    scale: str = "moonlight",
    compute_dtype: Any = None,
    precision: Any = None,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each matrix, or each of its blocks, by its polar factor times a factor of the shape.

    Args:
      period: P, steps from one of (1) to the next. 5 is said to be the paper's; 1 is `momentax.orthogonalize` and
        `momentax.scale_by_matrix_shape`; None is (2) in every step.
      method: coefficients of O, or another way to orthogonalise; see `momentax.orthogonalize`.
      steps: iterations in O.
      eps: added to the norm in O, in units of the update.
      blocks: None for the shards of each leaf; or a pair (rows, columns) for all leaves, whose first input axis is cut
        into `rows` equal parts and whose first output axis into `columns`; or a function (path, leaf) of one number for
        each axis of the leaf, as the devices of a mesh would cut it, or None for its shards.
      scale: factor s: "moonlight", "kj", "spectral" or "none"; see `momentax.scale_by_matrix_shape`.
      compute_dtype: dtype of the iteration; None is the leaf's own.
      precision: of its products; see `momentax.orthogonalize`.
      routing: states the axes of matrices and stacks; None for the conventions of Flax.

    Raises:
      ValueError: an unknown table or scale, numbers of blocks that do not divide a leaf, a leaf that is no matrix, or
        one whose axes cannot be told.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.orthogonalize_blocks(None, "exact", blocks=(1, 2), scale="none")
      >>> w = {"kernel": jnp.array([[3.0, 0.0, 1.0, 0.0], [0.0, 0.1, 0.0, 1.0]])}
      >>> print(tx.update(w, tx.init(w))[0]["kernel"].round(3) + 0)  # two blocks (2, 2)
      [[1. 0. 1. 0.]
       [0. 1. 0. 1.]]
    """
    checks.check_steps(NAME, period=period)
    checks.check_choice(NAME, "scale", scale, ("moonlight", "kj", "spectral", "none"))
    if not (blocks is None or callable(blocks)):
        _check_numbers("`blocks`", "a pair (rows, columns)", blocks, 2)
    make = functools.partial(orthogonalize, method, steps, eps, compute_dtype=compute_dtype, precision=precision)
    make()  # bad choices are refused now

    def scaled(tree: Updates, rules: Sequence[Rule]) -> Updates:
        """s O of all matrices of a tree."""
        paths = paths_of(tree)
        by_path = dict(zip(paths, rules, strict=True))
        tx = make(routing=lambda path, leaf: by_path[path])
        polar, _ = tx.update(tree, OrthogonalizeState(jnp.zeros([], jnp.int32)))
        return leaves.lift(NAME, lambda u, rule: shape_factor(scale, u.shape, rule) * u, polar, per_leaf=[rules])

    def init(params):
        _numbers(params, matrices(NAME, params, routing), blocks)
        return OrthogonalizeBlocksState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        read = matrices(NAME, updates, routing)
        numbers = _numbers(updates, read, blocks)

        def whole(updates):
            return scaled(updates, read.fused)  # (1)

        def in_blocks(updates):
            flat, treedef = jax.tree.flatten(updates)
            pieces = list(map(cut, flat, read.fused, read.whole, numbers))
            arrays, rules, places, backs = zip(*pieces, strict=True)
            tree = jax.tree.unflatten(treedef, arrays)
            paths = paths_of(tree)
            known = {path: place.spec for path, place in zip(paths, places, strict=True) if place.mesh is not None}
            # computing blocks twice is cheaper than sending them
            with stating(specs=known, share_copies=False):
                new = jax.tree.leaves(scaled(tree, rules))  # (2)
            return jax.tree.unflatten(treedef, [back(x) for back, x in zip(backs, new, strict=True)])

        if period == 1 or all(number == 1 for of_leaf in numbers for number in of_leaf):
            new = whole(updates)
        elif period is None:
            new = in_blocks(updates)
        else:
            new = jax.lax.cond(state.count % period == 0, whole, in_blocks, updates)
        return new, OrthogonalizeBlocksState(leaves.next_count(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _numbers(tree: Any, read: Matrices, blocks: Blocks) -> list[list[int]]:
    """For each leaf into how many parts its axes are cut."""
    found = []
    for (name, leaf), rule, place in zip(named_leaves(tree), read.fused, read.whole, strict=True):
        shape = jnp.shape(leaf)
        given = blocks(name, leaf) if callable(blocks) else blocks
        numbers = [1] * len(shape)
        if given is None:
            numbers = [math.prod(place.sizes.get(axis, 1) for axis in axes) for axes in place.shards(len(shape))]
        elif callable(blocks):
            needed = f"one number for each axis of leaf '{name}' {shape}"
            numbers = _check_numbers("the function `blocks`", needed, given, len(shape))
        else:
            numbers[rule.in_axes[0]], numbers[rule.out_axes[0]] = given
        for axis in rule.batch_axes:
            numbers[axis] = 1
        for axis, (length, number) in enumerate(zip(shape, numbers, strict=True)):
            if length % number:
                raise ValueError(
                    f"{NAME}: leaf '{name}' {shape} cannot be cut into {number} equal blocks along axis {axis}, of "
                    f"length {length}: give `blocks` numbers that divide it, by a function (path, leaf) where leaves "
                    "differ."
                )
        found.append(numbers)
    return found


def _check_numbers(what: str, needed: str, given: Any, length: int) -> list[int]:
    whole = isinstance(given, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in given)
    if not whole or len(given) != length:
        raise ValueError(f"{NAME}: {what} must give {needed}, integers of 1 or more; got {given!r}.")
    return list(given)
