"""Applies a function of matrices to many of them at once: those of one shape in one batch."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from momentax.sharding._carry import carry

Cost = Callable[[int, int], float]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which stacks are computed together; all of them on every device.

    Attributes:
      batches: for each batch the positions of its stacks. Those whose matrices have another shape than the first one's
        are transposed.
    """

    batches: tuple[tuple[int, ...], ...]


def plan_batches(stacks: Sequence[jax.Array], transposes: bool = False) -> Plan:
    """A batch for all stacks whose matrices have the same shape and dtype.

    Args:
      stacks: arrays (k, m, n).
      transposes: whether matrices (m, n) and (n, m) share a batch.

    >>> stacks = [jnp.zeros((1, 2, 3)), jnp.zeros((1, 4, 4)), jnp.zeros((5, 3, 2))]
    >>> plan_batches(stacks).batches, plan_batches(stacks, transposes=True).batches
    (((0,), (1,), (2,)), ((0, 2), (1,)))
    """
    batches: dict[tuple, list[int]] = {}
    for position, stack in enumerate(stacks):
        shape = stack.shape[1:]
        batches.setdefault((tuple(sorted(shape)) if transposes else shape, stack.dtype), []).append(position)
    return Plan(tuple(map(tuple, batches.values())))


def distribute(
    function: Callable[[jax.Array], jax.Array],
    stacks: Sequence[jax.Array],
    plan: Plan | None = None,
    cost: Cost | None = None,
) -> list[jax.Array]:
    """`function` of every stack of matrices, computed in few batches.

    Args:
      function: from matrices (k, m, n) to matrices of the same shape, each by itself; it knows no mesh.
      stacks: arrays (k, m, n), k, m and n their own.
      plan: which of them are computed together; None means `plan_batches(stacks)`. A plan in which stacks are
        transposed is for functions that do not care: function(x') = function(x)'.
      cost: of one matrix (m, n), in any unit. What is balanced over several devices; a plan that computes everything
        everywhere does not ask.

    Returns:
      Arrays like `stacks`, lying as they do.

    Example:
      >>> [y] = distribute(lambda x: 2 * x, [jnp.ones((1, 1, 2))])
      >>> print(y)
      [[[2. 2.]]]
    """
    del cost
    plan = plan_batches(stacks) if plan is None else plan

    def compute(*stacks: jax.Array) -> tuple[jax.Array, ...]:
        results: dict[int, jax.Array] = {}
        for batch in plan.batches:
            turned = [stacks[position].shape[1:] != stacks[batch[0]].shape[1:] for position in batch]
            members = [
                stacks[position].mT if turn else stacks[position] for position, turn in zip(batch, turned, strict=True)
            ]
            joined = function(members[0] if len(members) == 1 else jnp.concatenate(members))
            start = 0
            for position, member, turn in zip(batch, members, turned, strict=True):
                result = joined[start : start + len(member)]
                results[position] = result.mT if turn else result
                start += len(member)
        return tuple(results[position] for position in range(len(stacks)))

    return list(carry(compute, *stacks)) if stacks else []
