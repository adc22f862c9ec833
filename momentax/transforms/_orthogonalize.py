"""Orthogonalisation: each update matrix replaced by the nearest one whose singular values are all the same.

    X_0     = U / (|U|_F + eps)                                              (1)
    A       = X_k X_k'                                                       (2)
    X_{k+1} = a_k X_k + (b_k A + c_k A^2) X_k,   k = 0, ..., steps - 1       (3)

U: incoming update, read as matrices (in, out) by `routing`, each of a stack alone; a, b, c: a table of coefficients,
`method`. (3) maps each singular value s to a s + b s^3 + c s^5 and leaves the singular vectors alone: the limit is the
polar factor of U, its part without the singular values. Which singular values come near 1 is a matter of the table:

    table            steps    singular values in [|U|_F / 1000, |U|_F] end in
    muon             5        [0.47, 1.20]: made to rise fast, not to converge
    you              5        [0.47, 1.15]
    polar_express    5        [0.88, 1.12]
    polar_express    6        [0.9988, 1.0012]
    polar_express    8        1, within rounding
    classical        15       1, within rounding, and never above

Smaller ones are not lifted that far: `momentax.linalg.singular_value_range` says how far. method="exact" is the polar
factor by a singular value decomposition, slow on accelerators.

Matrices of one shape are computed in one batch, whatever leaves they come from, and over a mesh each on one device.
Where the long side exceeds 1.5 times the short one, m, (3) runs on m x m matrices (the Gram form of Dao-AILab) if
products are exact in float32 or float64: the same polynomial in fewer operations. Where they are rounded to less,
(3) stays as it stands, and half precision rounds where Muon's code does.

Contract: transform.
Source: Jordan et al., Muon, 2024, github.com/KellerJordan/Muon (1)-(3); Amsel et al., The Polar Express, arXiv
2505.16932; Grishina et al., CANS, arXiv 2506.10935; Turbo-Muon, arXiv 2512.04632 (aol);
github.com/Dao-AILab/gram-newton-schulz (Gram form).
Zero gives zero, and so does a dead row or column. A matrix with an entry that is not finite becomes NaN; the others do
not notice.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves
from momentax.linalg import coefficients, newton_schulz, polar, singular_value_range
from momentax.matrices import matrices
from momentax.routing import Routing
from momentax.sharding import placed
from momentax.typing import Count

HALF_SAFETY = 1.02  # in half precision, where Polar Express without it lets one matrix in some grow without bound
Method = str | Sequence[Sequence[float]] | Callable[[jax.Array], jax.Array]


class OrthogonalizeState(NamedTuple):
    """State of `orthogonalize`.

    Attributes:
      count: steps taken, int32 scalar.
    """

    count: Count


def orthogonalize(
    method: Method = "muon",
    steps: int = 5,
    eps: float | None = 1e-7,
    *,
    normalize: str | None = None,
    safety: float | None = None,
    compute_dtype: Any = None,
    input_dtype: Any = None,
    precision: Any = None,
    routing: Routing | None = None,
    mesh: Any = None,
    param_specs: Any = None,
    wire_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each matrix by (an approximation of) its polar factor.

    Args:
      method: name of a table of coefficients ("muon", "you", "polar_express", "cans", "classical" or "aol"), a table of
        rows (a, b, c), of which the last one repeats, "exact", or a function from matrices (k, in, out) to the like.
        The four arguments behind it, and `precision`, are for tables.
      steps: rows of the table that are applied. 5 as in Muon's code.
      eps: added to the norm in (1), in units of the update. 1e-7 as in Muon's code, which makes updates of that size
        and below shrink; None adds nothing, and then the scale of the update never matters.
      normalize: what (1) divides by: "frobenius", "schatten" (|U U'|_F^(1/2)), "spectral" (the largest singular value)
        or "aol" (each row or column of the short side by itself, which changes the limit). None is "aol" for the table
        of that name, which is made for it, and "frobenius" for the others.
      safety: s; rows but the last become (a/s, b/s^3, c/s^5), so that rounding cannot drive singular values beyond 1,
        where Polar Express' polynomials run away. None is 1.02 in half precision for tables that do, and 1 otherwise;
        its paper has 1.01.
      compute_dtype: dtype of the iteration; None is the leaf's own. jnp.bfloat16 as in Muon's code is faster on
        accelerators and about as good.
      input_dtype: dtype to which updates are rounded first; None does not round. The code of MuonH rounds to bfloat16.
      precision: of the products, as in `jax.lax.Precision`. None is JAX's default: accelerators round float32 to
        bfloat16 or so, as Muon's code does; "high" on TPUs and "highest" do not, and compile and run several times as
        long. Polar Express wants safety=1.02 where products are rounded.
      routing: states the axes of matrices and stacks; None for the conventions of Flax.
      mesh: on which the leaves lie, where they do not show it; see `momentax.on_mesh`.
      param_specs: their partitions; see `momentax.on_mesh`.
      wire_dtype: dtype in which matrices travel between devices; None is `compute_dtype`, and with it the leaf's own.

    Raises:
      ValueError: an unknown table or normalisation, a leaf that is no matrix, one whose axes cannot be told, or
        partitions that fit neither the leaves nor the mesh.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.orthogonalize("polar_express", steps=8)
      >>> w = {"kernel": jnp.array([[3.0, 0.0], [0.0, -0.1], [0.0, 0.0]])}
      >>> u, _ = tx.update(w, tx.init(w))
      >>> print(u["kernel"].round(3) + 0)
      [[ 1.  0.]
       [ 0. -1.]
       [ 0.  0.]]
    """
    checks.check_choice("orthogonalize", "normalize", normalize, (None, "frobenius", "schatten", "spectral", "aol"))
    checks.check_steps("orthogonalize", steps=steps)
    checks.check_dtype("orthogonalize", compute_dtype=compute_dtype, input_dtype=input_dtype, wire_dtype=wire_dtype)
    checks.check_non_negative("orthogonalize", eps=eps)
    named = not callable(method) and not (isinstance(method, str) and method == "exact")
    if normalize is None:
        normalize = "aol" if isinstance(method, str) and method == "aol" else "frobenius"
    tables = [_table(method, steps, safety, half) for half in (False, True)] if named else []

    def compute(stack, eps=eps):
        x = stack if compute_dtype is None else stack.astype(compute_dtype)
        if callable(method):
            return method(x).astype(stack.dtype)
        if not named:
            return polar(x.astype(leaves.compute_dtype(x))).astype(stack.dtype)
        table = tables[x.dtype.itemsize < 4]
        options = dict(normalize=normalize, eps=eps, form="auto", precision=precision)
        return newton_schulz(x, steps, table, **options).astype(stack.dtype)

    # what a table rounds to compute_dtype anyway may travel so
    travels = wire_dtype if wire_dtype is not None else compute_dtype if named else None

    def init(params):
        matrices("orthogonalize", params, routing)
        return OrthogonalizeState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        read = matrices("orthogonalize", updates, routing)
        flat, treedef = jax.tree.flatten(updates)
        rounded = flat if input_dtype is None else [u.astype(input_dtype).astype(u.dtype) for u in flat]
        injected = (eps,) if isinstance(eps, jax.Array) else ()  # constants stay constants
        new = read.map(
            "orthogonalize", compute, rounded, transposes=not callable(method), wire_dtype=travels, shared=injected
        )
        return jax.tree.unflatten(treedef, new), OrthogonalizeState(leaves.next_count(state.count))

    tx = optax.GradientTransformationExtraArgs(init, update)
    if mesh is None and param_specs is None:
        return tx
    return optax.GradientTransformationExtraArgs(*placed("orthogonalize", tx, mesh, param_specs))


def _table(method: Any, steps: int, safety: float | None, half: bool) -> Any:
    try:
        table = coefficients(method, steps, safety=1.0 if safety is None else safety)
        if safety is None and half and _runs_away(table):
            table = coefficients(method, steps, safety=HALF_SAFETY)
        return table
    except ValueError as error:
        raise ValueError(
            f"orthogonalize: `method`, `steps` and `safety` give no table: {error} `method` may also be 'exact' or a "
            "function of matrices (k, in, out)."
        ) from None


def _runs_away(table: Any) -> bool:
    """Whether singular values a little above 1, where rounding in half precision brings them, end far above."""
    (_, usual), (_, beyond) = (singular_value_range(table, 0.0, upper) for upper in (1.0, 1.01))
    return beyond > 1.1 * usual
