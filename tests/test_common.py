"""Every public factory against every check that its traits call for, and no factory without a row."""

import functools
import inspect

import optax
import pytest
from catalogue import CASES, Case
from discovery import public_factories

from momentax.testing import checks_for

BY_NAME = {case.name: case for case in CASES}


@functools.cache
def subject(name: str):
    """One subject a row: its checks share compiled steps."""
    return BY_NAME[name].subject()


def pairs():
    rows = []
    for case in CASES:
        for check_name, check in checks_for(case.subject().traits):
            reason = case.expected_failures.get(check_name)
            marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
            rows.append(pytest.param(case.name, check, id=f"{case.name}-{check_name}", marks=marks))
    return rows


@pytest.mark.parametrize(("name", "check"), pairs())
def test_check(name, check):
    check(subject(name))


def _row(name, factory) -> str:
    required = [
        parameter.name
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.default is parameter.empty
    ]
    arguments = ", ".join(f"{argument}=..." for argument in required)
    return f'Case("{name}", {name}, dict({arguments}), Traits(...)),'


def missing_rows(factories, cases: list[Case]) -> list[str]:
    covered = {case.name.split("[")[0] for case in cases}
    return [_row(name, factory) for name, factory in factories.items() if name not in covered]


def test_every_public_factory_has_a_row():
    missing = missing_rows(public_factories(), CASES)
    assert not missing, "add to CASES of its room in tests/catalogue/:\n" + "\n".join(missing)


def test_a_missing_row_is_reported_with_the_line_to_add():
    kept = [case for case in CASES if not case.name.startswith("momentax.decays.decoupled")]
    line = 'Case("momentax.decays.decoupled", momentax.decays.decoupled, dict(weight_decay=...), Traits(...)),'
    assert missing_rows(public_factories(), kept) == [line]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_row_names_a_public_factory(case):
    name = case.name.split("[")[0]
    assert public_factories().get(name) is case.factory, f"{name} is no public factory, or the row has another"


def test_row_names_differ():
    assert len(BY_NAME) == len(CASES)


def test_factories_return_optax_transformations():
    for case in CASES:
        assert isinstance(case.factory(**case.arguments), optax.GradientTransformationExtraArgs), case.name
