"""Schedules of odd polynomials, each the best for the interval that the one before leaves.

    p = argmin_q max |1 - q(s)|,  s in [max(l, cushion u), u]                         (1)  q odd, of the given degree
    p <- 2 p / (min p + max p),  over [l, u]                                          (2)
    [l, u] <- p([l, u]) = [1 - E, 1 + E]                                              (3)
    p(s) = s sum_{j<k} C(2j, j) / 4^j (1 - s^2)^j                                     (4)  degree 2 k - 1

(1) is the polynomial whose error takes its largest size with alternating signs at k + 1 points of the interval, found
by the exchange of Remez: the points move to the ends and to the roots of p'. (4), of which "classical" is degree 5, is
the limit of (1) as the interval shrinks to 1. It takes over once it is as good as any number that float64 holds.

Source: (1) to (3) Amsel et al., The Polar Express, arXiv 2505.16932; without a cushion Grishina et al., CANS, arXiv
2506.10935; Remez, C. R. Acad. Sci. Paris 1934. (4) Kenney & Laub, SIAM J. Matrix Anal. Appl. 1991.
Departure: 80 decimal digits. In float64 the last polynomials before the limit are lost to cancellation.
"""

import decimal
import functools
import math
import numbers
from decimal import Decimal

import numpy as np

Table = tuple[tuple[float, ...], ...]  # rows (a, b, c, ...): p(s) = a s + b s^3 + c s^5 + ...

CUSHION = 0.02407327424182761  # of Polar Express: lifts what is below u / 42 slower, but lets nothing in [l, u] vanish
_DIGITS = 80
_EXACT = Decimal("1e-17")  # an error below this is none in float64


def polar_express(
    steps: int,
    lower: float = 1e-3,
    upper: float = 1.0,
    *,
    degree: int = 5,
    cushion: float = CUSHION,
    safety: float = 1.0,
) -> Table:
    """The schedule (1) to (3) for singular values in [lower, upper]: rows of coefficients.

    Args:
      steps: rows, 1 or more.
      lower, upper: ends of the interval, 0 < lower < upper, in units of the scaled matrix. 1e-3 and 1 as in the paper.
      degree: of the polynomials, odd, 3 or more.
      cushion: in [0, 1). 0 is the best composition in exact arithmetic; the paper's keeps (1) from bringing larger
        singular values down to almost nothing for the sake of l, which rounding does not forgive.
      safety: (a / t, b / t^3, ...) with t = safety for every row before the limit (4), 1 or more; 1 is off.

    Raises:
      ValueError: an impossible interval, degree, cushion, safety or number of steps.

    Example:
      >>> print([round(c, 6) for c in polar_express(1)[0]])
      [8.287212, -23.595887, 17.300387]
    """
    return _schedule("polar_express", steps, lower, upper, degree, cushion, safety)


def cans(steps: int, lower: float = 1e-3, upper: float = 1.0, *, safety: float = 1.0, degree: int = 3) -> Table:
    """The schedule (1) to (3) without a cushion, of cubics unless told otherwise. Arguments as in `polar_express`.

    Example:
      >>> print([round(c, 6) for c in cans(1)[0]])
      [5.180102, -5.174922]
    """
    return _schedule("cans", steps, lower, upper, degree, 0.0, safety)


def singular_value_range(table: Table, lower: float, upper: float) -> tuple[float, float]:
    """Smallest and largest singular value after the rows of `table`, for any matrix with those in [lower, upper].

    The image of the interval itself, but for the rounding of this computation, which makes it wider: both ends are
    attained by some singular value. Rounding in the iterations comes on top.

    Args:
      table: rows of coefficients, as from `coefficients`.
      lower, upper: 0 <= lower <= upper.

    Raises:
      ValueError: no such interval.

    Example:
      >>> print(round(singular_value_range(((3.4445, -4.7750, 2.0315),) * 5, 0.0, 1.0)[1], 4))
      1.2024
    """
    if not 0 <= lower <= upper < math.inf:
        raise ValueError(f"singular_value_range: needs 0 <= lower <= upper, both finite; got [{lower!r}, {upper!r}].")
    low, high = float(lower), float(upper)
    for row in table:
        p = np.polynomial.Polynomial([c for odd in row for c in (0.0, odd)])
        turns = p.deriv().roots().real  # a point too many does no harm
        with np.errstate(over="ignore", invalid="ignore"):
            values = p(np.clip(np.concatenate([[low, high], turns]), low, high))
            rounding = 8 * np.finfo(float).eps * float(np.sum(np.abs(p.coef) * high ** np.arange(p.coef.size)))
        smallest, largest = float(values.min()) - rounding, float(values.max()) + rounding
        if not math.isfinite(smallest + largest):
            return 0.0, math.inf
        low = 0.0 if smallest < 0 < largest else min(abs(smallest), abs(largest))
        high = max(abs(smallest), abs(largest))
    return low, high


def check_steps(function: str, steps: int) -> None:
    """Raises `ValueError` unless `steps` is a Python integer of 1 or more."""
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
        raise ValueError(f"{function}: `steps` must be a Python integer of 1 or more; got {steps!r}.")


def check_safety(function: str, safety: float) -> None:
    """Raises `ValueError` unless `safety` is a finite number of 1 or more."""
    if not (isinstance(safety, numbers.Real) and 1 <= safety < math.inf):
        raise ValueError(f"{function}: `safety` must be a finite number of 1 or more, 1 being off; got {safety!r}.")


@functools.lru_cache(maxsize=256)
def _schedule(
    function: str, steps: int, lower: float, upper: float, degree: int, cushion: float, safety: float
) -> Table:
    check_steps(function, steps)
    check_safety(function, safety)
    numbers_given = all(isinstance(n, numbers.Real) for n in (lower, upper, cushion))
    if not (numbers_given and 0 < lower < upper < math.inf):
        raise ValueError(
            f"{function}: no schedule for the interval [{lower!r}, {upper!r}]; needs 0 < lower < upper, both finite."
        )
    if isinstance(degree, bool) or not isinstance(degree, numbers.Integral) or degree < 3 or degree % 2 == 0:
        raise ValueError(f"{function}: `degree` must be an odd integer of 3 or more; got {degree!r}.")
    if not 0 <= cushion < 1:
        raise ValueError(f"{function}: `cushion` must lie in [0, 1); got {cushion!r}.")
    rows: list[tuple[float, ...]] = []
    with decimal.localcontext(decimal.Context(prec=_DIGITS)):
        unit, factor = Decimal(float(upper)), Decimal(float(safety))
        low, high, size = Decimal(float(lower)) / unit, Decimal(1), (int(degree) + 1) // 2
        limit = _limit(size)
        while len(rows) < steps:
            ends = _value(limit, low), _value(limit, high)
            if max(abs(1 - end) for end in ends) < _EXACT:
                p, factor = limit, Decimal(1)  # (4)
            else:
                p, error = _best(max(low, Decimal(float(cushion)) * high), high, size)  # (1)
                smallest, largest = _value(p, low), 1 + error
                p = [2 * c / (smallest + largest) for c in p]  # (2)
                low = 2 * smallest / (smallest + largest)  # (3)
                high = 2 - low
            rows.append(tuple(float(c / (unit * factor) ** (2 * j + 1)) for j, c in enumerate(p)))
            unit = Decimal(1)
    return tuple(rows)


def _best(low: Decimal, high: Decimal, size: int) -> tuple[list[Decimal], Decimal]:
    """The polynomial (1) over [low, high], coefficients of s, s^3, ..., and its error."""
    points = [low + (high - low) * (2 * i - 1) / (2 * size - 2) for i in range(1, size)]
    previous = Decimal(0)
    for _ in range(100):
        points = [low, *points, high]
        rows = [
            [*(s ** (2 * j + 1) for j in range(size)), Decimal((-1) ** i), Decimal(1)] for i, s in enumerate(points)
        ]
        *p, error = _solve(rows)  # p = 1 - E, 1 + E, 1 - E, ... at the points
        if abs(error - previous) <= abs(error) * Decimal("1e-30"):
            break
        points, previous = _turns(p, low, high), error
    return p, abs(error)


def _turns(p: list[Decimal], low: Decimal, high: Decimal) -> list[Decimal]:
    """The roots of p' in (low, high), rising: p - 1 changes sign between them, so that all are simple."""
    size = len(p)
    slope = [(2 * j + 1) * c for j, c in enumerate(p)]  # in t = s^2
    centre, half = Decimal(0), Decimal(1)
    if low > high / 10:  # in y, t = centre + half y: the roots are far apart, however short the interval
        centre, half = (low**2 + high**2) / 2, (high**2 - low**2) / 2
        slope = [
            sum(slope[i] * math.comb(i, j) * centre ** (i - j) for i in range(j, size)) * half**j for j in range(size)
        ]
    scale = max(abs(c) for c in slope)
    roots = []
    for y in map(Decimal, np.roots([float(c / scale) for c in reversed(slope)]).real.tolist()):
        for _ in range(5):  # Newton: 12 digits, 24, ...
            value = derivative = Decimal(0)
            for c in reversed(slope):
                derivative = derivative * y + value
                value = value * y + c
            y -= value / derivative
        roots.append((centre + half * y).sqrt())
    return sorted(roots)


def _solve(rows: list[list[Decimal]]) -> list[Decimal]:
    """Gaussian elimination with pivots; the last column is the right-hand side."""
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [c / rows[i][i] for c in rows[i]]
        for k in range(len(rows)):
            if k != i:
                rows[k] = [c - rows[k][i] * d for c, d in zip(rows[k], rows[i], strict=True)]
    return [row[-1] for row in rows]


def _limit(size: int) -> list[Decimal]:
    """The coefficients of (4)."""
    weights = [Decimal(math.comb(2 * j, j)) / 4**j for j in range(size)]
    return [(-1) ** i * sum((weights[j] * math.comb(j, i) for j in range(i, size)), Decimal(0)) for i in range(size)]


def _value(p: list[Decimal], s: Decimal) -> Decimal:
    return sum((c * s ** (2 * j + 1) for j, c in enumerate(p)), Decimal(0))
