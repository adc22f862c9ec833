"""A table of what every leaf was taken for, and why."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from momentax.routing._heads import state_head
from momentax.routing._resolve import Routing, advice, assigned, doubt_advice, unmatched
from momentax.routing._rules import Rule


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The table that `explain` returns; `print` it.

    Attributes:
      rows: one `(path, shape, rule, axes, reason)` a leaf, all but the shape as text; the rule of a leaf that was
        refused is "refused" and its reason says what to do.
      doubtful: paths of leaves whose axes are told and which matrix methods refuse; their reason says what to do.
      unmatched: patterns of the given dict that match no leaf.
    """

    rows: tuple[tuple[str, tuple[int, ...], str, str, str], ...]
    doubtful: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

    def __str__(self) -> str:
        table = [("path", "shape", "rule", "axes", "reason")]
        table += [(path, str(shape), rule, axes, reason) for path, shape, rule, axes, reason in self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        lines = ["  ".join([*map(str.ljust, row[:4], widths), row[4]]).rstrip() for row in table]
        if self.unmatched:
            lines.append(f"no leaf matches {', '.join(map(repr, self.unmatched))}")
        refused = sum(row[2] == "refused" for row in self.rows)
        lines.append(f"{len(self.rows)} leaves, {refused} refused, {len(self.doubtful)} doubtful")
        heads = [row[0] for row in self.rows if row[2] == "head"]
        lines.append(f"head: {', '.join(heads) or 'none recognised; head=<path pattern> states one'}")
        return "\n".join(lines)

    __repr__ = __str__


def explain(params: Any, routing: Routing | None = None, head: str | None = None) -> Explanation:
    """Says which rule each leaf gets, which of its axes are inputs, outputs and stacks, and why.

    Args:
      params: tree of arrays or of shapes (`jax.eval_shape` will do).
      routing: as given to an optimizer; None for the conventions of Flax.
      head: as given to an optimizer: pattern of whole paths (`*` also crosses slashes) of matrices that give the
        logits, beside those recognised by name.

    Returns:
      A table; a leaf that cannot be told is listed as refused, with what to state. Its last line says which leaves were
      taken for the output head.

    Raises:
      ValueError: a stated rule whose axes do not partition its leaf, or a `head` that matches no leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> print(explain({"dense": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}}))
      path          shape   rule    axes            reason
      dense/bias    (4,)    vector                  rank 1
      dense/kernel  (3, 4)  matrix  in (0) out (1)  rank 2: (in, out)
      2 leaves, 0 refused, 0 doubtful
      head: none recognised; head=<path pattern> states one
    """
    rows, doubtful = [], []
    table = state_head("explain", assigned(params, routing), head)
    for path, leaf, rule in table:
        shape = jnp.shape(leaf)
        if isinstance(rule, str):
            rows.append((path, shape, "refused", "", advice(path, rule, routing)))
            continue
        reason = f"{rule.reason}; {doubt_advice(path, rule, routing)}" if rule.doubt else rule.reason
        doubtful += [path] if rule.doubt else []
        rows.append((path, shape, rule.kind, _axes(rule), reason))
    return Explanation(tuple(rows), tuple(doubtful), tuple(unmatched(params, routing)))


def _axes(rule: Rule) -> str:
    named = (("in", rule.in_axes), ("out", rule.out_axes), ("batch", rule.batch_axes))
    axes = [f"{name} ({', '.join(map(str, axes))})" for name, axes in named if axes]
    return " ".join(axes + ([f"blocks {rule.blocks}"] if rule.blocks != 1 else []))
