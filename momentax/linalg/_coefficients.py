"""Coefficients of odd polynomials that push singular values towards 1.

    p(s) = a s + b s^3 + c s^5 + ...                        (1)  one row (a, b, c, ...) for each step
    a / t, b / t^3, c / t^5, ...  in place of a, b, c, ...  (2)  with a safety factor t: p(s / t)

(2) keeps singular values that rounding has pushed above the interval of a schedule from growing. The last row of a
table is left as it is: schedules end in a polynomial that corrects, and is repeated.

Source: "muon": Jordan et al., Muon, 2024, KellerJordan/Muon. "you" (also "dion"): Optax, Dao-AILab/gram-newton-schulz.
"polar_express": Amsel et al., The Polar Express, arXiv 2505.16932, for [1e-3, 1]. "cans": Grishina et al., Accelerating
Newton-Schulz Iteration for Orthogonalization via Chebyshev-type Polynomials, arXiv 2506.10935, cubics for [1e-3, 1].
"classical": the member of degree 5 of the Pade family of Kenney & Laub, Rational Iterative Methods for the Matrix Sign
Function, SIAM J. Matrix Anal. Appl. 1991. "aol": Boissin et al., Turbo-Muon, arXiv 2512.04632, and
thib-s/flash-newton-schulz: four steps that follow the normalisation "aol".
"""

import math
import numbers
from collections.abc import Sequence

from momentax.linalg._schedules import Table, cans, check_safety, check_steps

_TABLES: dict[str, Table] = {
    "aol": (
        (4.6051, -9.6552, 5.6769),
        (4.7505, -6.0861, 2.1790),
        (2.7763, -2.3190, 0.5523),
        (2.4231, -2.2861, 0.8193),
    ),
    "classical": ((1.875, -1.25, 0.375),),
    "muon": ((3.4445, -4.7750, 2.0315),),
    "polar_express": (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ),
    "you": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
_TABLES["dion"] = _TABLES["you"]


def coefficients(table: str | Sequence, steps: int, safety: float = 1.0) -> Table:
    """The rows (a, b, c, ...) of (1) for `steps` steps, as Python floats.

    Args:
      table: "aol", "cans", "classical", "dion", "muon", "polar_express" or "you"; or a row (a, b, ...) of two or more
        numbers, or a sequence of such rows of one length. Its first `steps` rows are taken; the last one is repeated
        where they run out.
      steps: how many rows, 1 or more.
      safety: the factor t of (2), 1 or more, for every row but the last of the table. 1 is off; 1.01 in Polar Express,
        1.05 in half precision.

    Raises:
      ValueError: an unknown name, a table without rows of one length, steps below 1, or safety below 1.

    Example:
      >>> print(coefficients("muon", 2))
      ((3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315))
    """
    check_steps("coefficients", steps)
    check_safety("coefficients", safety)
    rows = _rows(table)
    scaled = tuple(tuple(c / safety ** (2 * j + 1) for j, c in enumerate(row)) for row in rows[:-1])  # (2)
    rows = (*scaled, rows[-1])
    return (rows + rows[-1:] * steps)[:steps]


def _rows(table: str | Sequence) -> Table:
    if isinstance(table, str):
        if table == "cans":
            return cans(12)  # its last row is the limit
        if table not in _TABLES:
            names = ", ".join(repr(name) for name in sorted((*_TABLES, "cans")))
            raise ValueError(f"coefficients: `table` must be one of {names}, or rows (a, b, ...); got {table!r}.")
        return _TABLES[table]
    try:
        rows = [table] if isinstance(table[0], numbers.Real) else table
        found = tuple(tuple(float(c) for c in row) for row in rows)
    except (TypeError, ValueError, IndexError, KeyError):
        found = ()
    if not found or len(found[0]) < 2 or any(len(r) != len(found[0]) or not all(map(math.isfinite, r)) for r in found):
        raise ValueError(
            "coefficients: a table must be a row (a, b, ...) of two or more finite numbers, or a sequence of such rows "
            f"of one length; got {table!r}."
        )
    return found
