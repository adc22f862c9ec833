"""Coefficient tables and their generator: published numbers, equioscillation, and bounds that hold."""

import itertools
import math

import numpy as np
import pytest

from momentax.linalg import cans, coefficients, polar_express, singular_value_range


def evaluate(row, s):
    return sum(c * s ** (2 * j + 1) for j, c in enumerate(row))


def after(table, s):
    for row in table:
        s = evaluate(row, s)
    return s


def error(table, lower):
    low, high = singular_value_range(table, lower, 1.0)
    return max(1 - low, high - 1)


def test_the_generator_reproduces_the_published_table():
    published = coefficients("polar_express", 8)
    np.testing.assert_allclose(polar_express(8), published, rtol=0, atol=1e-10)
    np.testing.assert_allclose(polar_express(6), published[:6], rtol=0, atol=2e-12)
    assert polar_express(9)[7:] == ((1.875, -1.25, 0.375),) * 2


@pytest.mark.parametrize("degree", [3, 5, 7, 11])
@pytest.mark.parametrize("lower, upper", [(1e-3, 1.0), (0.5, 1.0), (0.2, 4.0), (0.98, 1.01)])
def test_polynomials_equioscillate(degree, lower, upper):
    """Chebyshev: an error of full size with alternating signs at k + 1 points is proof that no polynomial does better.

    Scaled by (2) nothing changes where there is no cushion.
    """
    (row,) = polar_express(1, lower, upper, degree=degree, cushion=0.0)
    s = np.unique(np.concatenate([np.linspace(lower, upper, 20001), np.geomspace(lower, upper, 20001)]))
    e = 1 - evaluate(row, s)
    largest = np.max(np.abs(e))
    assert largest < 1
    peaks = [
        max(group, key=abs) for _, group in itertools.groupby(e[np.abs(e) > largest * (1 - 1e-3) - 1e-12], key=np.sign)
    ]
    assert len(peaks) == (degree + 1) // 2 + 1
    np.testing.assert_allclose(np.abs(peaks), largest, rtol=1e-4, atol=1e-12)


def test_cans_is_its_closed_form():
    lower, upper = 1e-3, 1.0
    for row in cans(10):
        e = math.sqrt((lower**2 + lower * upper + upper**2) / 3)
        alpha = 2 / (2 * e**3 + lower**2 * upper + lower * upper**2)
        np.testing.assert_allclose(row, [alpha * (lower**2 + lower * upper + upper**2), -alpha], rtol=1e-9)
        bound = (2 * e**3 - lower**2 * upper - lower * upper**2) * alpha / 2
        lower, upper = 1 - bound, 1 + bound


def test_worst_errors_of_schedules():
    cubics = [0.995, 0.987, 0.966, 0.914, 0.796, 0.568, 0.265, 0.054, 2.2e-3, 3.5e-6]
    quintics = [0.992, 0.965, 0.860, 0.546, 0.113, 9.2e-4, 4.8e-10]
    np.testing.assert_allclose([error(cans(k), 1e-3) for k in range(1, 11)], cubics, rtol=0.02)
    greedy = [error(polar_express(k, cushion=0.0), 1e-3) for k in range(1, 8)]
    np.testing.assert_allclose(greedy, quintics, rtol=0.01)
    assert [error(coefficients("cans", k), 1e-3) for k in (3, 12)] == [error(cans(k), 1e-3) for k in (3, 12)]


@pytest.mark.parametrize(
    "parts, expected",  # for singular values in [1e-3, 1], [1e-2, 1] and [5e-2, 1]
    [
        ([("muon", 5, 1.0)], (0.53, 0.32, 0.32)),
        ([("you", 5, 1.0)], (0.525, 0.032, 0.032)),
        ([("polar_express", 5, 1.0)], (0.124, 0.124, 0.124)),
        ([("polar_express", 5, 1.01)], (0.154, 0.130, 0.130)),
        ([("polar_express", 5, 1.05)], (0.27, 0.154, 0.154)),
        ([("polar_express", 6, 1.0)], (1.18e-3, 1.18e-3, 1.18e-3)),
        ([("classical", 5, 1.0)], (0.977, 0.772, 0.148)),
        ([("classical", 10, 1.0)], (0.50, 2.3e-10, 0)),
        ([("classical", 15, 1.0)], (0, 0, 0)),
        ([("muon", 5, 1.0), ("classical", 3, 1.0)], (5.6e-5, 5e-10, 5e-10)),
        ([("polar_express", 5, 1.0), ("classical", 2, 1.0)], (3.46e-7, 3.46e-7, 3.46e-7)),
        ([("polar_express", 8, 1.0)], (0, 0, 0)),
    ],
)
def test_what_error_for_what_cost(parts, expected):
    table = [row for part in parts for row in coefficients(*part)]
    np.testing.assert_allclose([error(table, lower) for lower in (1e-3, 1e-2, 5e-2)], expected, rtol=0.015, atol=1e-14)


@pytest.mark.parametrize("name", ["aol", "cans", "classical", "dion", "muon", "polar_express", "you"])
@pytest.mark.parametrize("lower", [0.0, 1e-9, 1e-3])
def test_ranges_hold_and_are_attained(name, lower):
    table = coefficients(name, 5)
    low, high = singular_value_range(table, lower, 1.0)
    s = np.concatenate([np.linspace(lower, 1, 200001), np.geomspace(max(lower, 1e-12), 1, 200001), [lower]])
    values = np.abs(after(table, s))
    assert low <= values.min() and values.max() <= high
    np.testing.assert_allclose([values.min(), values.max()], [low, high], rtol=1e-3, atol=1e-12)


def test_muon_promises_no_more_than_this():
    low, high = singular_value_range(coefficients("muon", 5), 0.0, 1.0)
    assert low == 0 and abs(high - 1.2024) < 5e-5


def test_safety_spares_the_last_row_only():
    plain, safe = coefficients("polar_express", 10), coefficients("polar_express", 10, 1.05)
    for (a, b, c), row in zip(plain[:7], safe, strict=False):
        np.testing.assert_allclose(row, (a / 1.05, b / 1.05**3, c / 1.05**5), rtol=1e-15)
    assert safe[7:] == plain[7:]
    np.testing.assert_allclose(polar_express(10, safety=1.05), safe, rtol=0, atol=1e-10)
    assert coefficients("muon", 5, 1.05) == coefficients("muon", 5)


def test_tables_of_the_caller():
    assert coefficients((1.5, -0.5), 2) == ((1.5, -0.5),) * 2
    assert coefficients([[3, -2], [1.5, -0.5], [1, 0]], 2) == ((3.0, -2.0), (1.5, -0.5))
    assert coefficients(np.array([[3, -2], [1.5, -0.5]]), 4) == ((3.0, -2.0), *((1.5, -0.5),) * 3)


def test_intervals_need_not_end_at_one():
    unit, scaled = polar_express(3, 1e-2, 1.0), polar_express(3, 1e-1, 10.0)
    np.testing.assert_allclose(scaled[0], [c / 10 ** (2 * j + 1) for j, c in enumerate(unit[0])], rtol=1e-13)
    np.testing.assert_allclose(scaled[1:], unit[1:], rtol=1e-13)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: coefficients("mouon", 5), "'muon'.*'mouon'"),
        (lambda: coefficients([], 5), "row"),
        (lambda: coefficients([(1.0, 2.0), (1.0,)], 5), "one length"),
        (lambda: coefficients([(1.0,)], 5), "two or more"),
        (lambda: coefficients([(1.0, math.nan)], 5), "finite"),
        (lambda: coefficients("muon", 0), "`steps`"),
        (lambda: coefficients("muon", 2.5), "`steps`"),
        (lambda: coefficients("muon", 5, 0.9), "`safety`"),
        (lambda: polar_express(0), "`steps`"),
        (lambda: polar_express(5, 0.0), "interval"),
        (lambda: polar_express(5, 1.0, 1.0), "interval"),
        (lambda: polar_express(5, 1e-3, math.inf), "interval"),
        (lambda: polar_express(5, math.nan), "interval"),
        (lambda: polar_express(5, degree=4), "`degree`"),
        (lambda: polar_express(5, degree=1), "`degree`"),
        (lambda: polar_express(5, cushion=1.0), "`cushion`"),
        (lambda: cans(5, 2.0), "cans.*interval"),
        (lambda: cans(5, safety=0.5), "`safety`"),
        (lambda: singular_value_range(((1.5, -0.5),), 1.0, 0.5), "lower <= upper"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as info:
        call()
    assert "\n" not in str(info.value)
