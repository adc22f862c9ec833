"""A table of what every leaf was taken for, and why."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from momentax.routing._resolve import Routing, advice, assigned


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The table that `explain` returns; `print` it.

    Attributes:
      rows: one `(path, shape, rule, axes, reason)` a leaf, all but the shape as text; the rule of a leaf that was
        refused is "refused" and its reason says what to do.
    """

    rows: tuple[tuple[str, tuple[int, ...], str, str, str], ...]

    def __str__(self) -> str:
        table = [("path", "shape", "rule", "axes", "reason")]
        table += [(path, str(shape), rule, axes, reason) for path, shape, rule, axes, reason in self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        lines = ["  ".join([*map(str.ljust, row[:4], widths), row[4]]).rstrip() for row in table]
        refused = sum(row[2] == "refused" for row in self.rows)
        lines.append(f"{len(self.rows)} leaves, {refused} refused")
        return "\n".join(lines)

    __repr__ = __str__


def explain(params: Any, routing: Routing | None = None) -> Explanation:
    """Says which rule each leaf gets, which of its axes are inputs, outputs and stacks, and why.

    Args:
      params: tree of arrays or of shapes (`jax.eval_shape` will do).
      routing: as given to an optimizer; None for the conventions of Flax.

    Returns:
      A table; a leaf that cannot be told is listed as refused, with what to state.

    Raises:
      ValueError: a stated rule whose axes do not partition its leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> print(explain({"dense": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}}))
      path          shape   rule    axes            reason
      dense/bias    (4,)    vector                  rank 1
      dense/kernel  (3, 4)  matrix  in (0) out (1)  rank 2: (in, out)
      2 leaves, 0 refused
    """
    rows = []
    for path, leaf, rule in assigned(params, routing):
        shape = jnp.shape(leaf)
        if isinstance(rule, str):
            rows.append((path, shape, "refused", "", advice(path, rule)))
            continue
        named = (("in", rule.in_axes), ("out", rule.out_axes), ("batch", rule.batch_axes))
        axes = " ".join(f"{name} ({', '.join(map(str, axes))})" for name, axes in named if axes)
        rows.append((path, shape, rule.kind, axes, rule.reason))
    return Explanation(tuple(rows))
