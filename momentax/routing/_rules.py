"""What a leaf is: the rules that routing assigns."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a leaf is read.

    Attributes:
      kind: "matrix", "head" (the matrix that gives the logits), "embedding" or "vector".
      in_axes: axes contracted with the input of the layer; empty for vectors.
      out_axes: axes that remain in its output; empty for vectors.
      batch_axes: axes along which independent leaves are stacked (layers, experts, heads).
      reason: why, in a few words.
      blocks: how many matrices lie side by side along the last of `out_axes` (three for a fused query, key and value).
      doubt: why the leaf may be no matrix, or several, although its axes are known; or nothing. Methods that only need
        the axes go on; matrix methods refuse it.
    """

    kind: str
    in_axes: tuple[int, ...] = ()
    out_axes: tuple[int, ...] = ()
    batch_axes: tuple[int, ...] = ()
    reason: str = "stated by the user"
    blocks: int = 1
    doubt: str = ""

    @property
    def is_matrix(self) -> bool:
        """Whether the leaf is what a layer multiplies by: a matrix, an output head among them."""
        return self.kind in ("matrix", "head")

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """The axes that count channels: the outputs of a matrix, the tokens of an embedding (a token's row is
        one channel, as in torch's (vocabulary, features) layout, on which AdamP was defined)."""
        return self.in_axes if self.kind == "embedding" else self.out_axes


@dataclasses.dataclass(frozen=True)
class RuleSet:
    """A family of conventions.

    Attributes:
      rule: from a path, its shape and the shapes of all leaves by path to a `Rule`, or to a string that says why
        there is none.
    """

    rule: Callable[[str, tuple[int, ...], Shapes], Rule | str]


def matrix(in_axes: Sequence[int], out_axes: Sequence[int], batch_axes: Sequence[int] = (), *, blocks: int = 1) -> Rule:
    """States that a leaf is a matrix (or a stack of matrices); axes may be negative.

    Args:
      in_axes: axes contracted with the input of the layer, spatial axes of a convolution among them.
      out_axes: axes of the output.
      batch_axes: axes along which independent matrices are stacked.
      blocks: how many matrices lie side by side along the last of `out_axes`: 3 for a fused query, key and value.

    >>> matrix(in_axes=(0,), out_axes=(1, 2)).channel_axes
    (1, 2)
    """
    return Rule("matrix", tuple(in_axes), tuple(out_axes), tuple(batch_axes), blocks=blocks)


def head(in_axes: Sequence[int], out_axes: Sequence[int], batch_axes: Sequence[int] = ()) -> Rule:
    """States that a leaf is the matrix that gives the logits; axes as for `matrix`.

    >>> head(in_axes=(0,), out_axes=(1,)).kind
    'head'
    """
    return Rule("head", tuple(in_axes), tuple(out_axes), tuple(batch_axes))


def embedding(vocabulary_axis: int = 0, feature_axis: int = -1, batch_axes: Sequence[int] = ()) -> Rule:
    """States that a leaf is a table of one vector a token.

    >>> embedding().channel_axes
    (0,)
    """
    return Rule("embedding", (vocabulary_axis,), (feature_axis,), tuple(batch_axes))


def vector(batch_axes: Sequence[int] = ()) -> Rule:
    """States that a leaf is no matrix, whatever its rank: a bias, a scale, a scalar.

    >>> vector().kind
    'vector'
    """
    return Rule("vector", batch_axes=tuple(batch_axes))
