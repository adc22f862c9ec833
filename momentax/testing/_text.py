"""Checks of the documentation that a published technique carries."""

import inspect
import re
import sys

from momentax.testing._subject import Subject
from momentax.testing._when import when

documented = when(lambda traits: traits.documented)


def _factory(subject):
    make = subject.make
    while hasattr(make, "func"):
        make = make.func
    return inspect.unwrap(make)


def _docstring(subject) -> str:
    return inspect.getdoc(_factory(subject)) or ""


def _module_docstring(subject) -> str:
    return inspect.getdoc(sys.modules[_factory(subject).__module__]) or ""


@documented
def check_the_example_runs_in_the_docstring(subject: Subject):
    """The factory's docstring has an example for doctest, which uses the factory."""
    examples = [line for line in _docstring(subject).splitlines() if line.strip().startswith((">>>", "..."))]
    assert any(subject.name in line for line in examples), f"{subject.name}: add a `>>>` example that calls it"


@documented
def check_the_docstring_explains_every_argument(subject: Subject):
    """The factory's docstring has a line `name:` for each argument of the signature, and for nothing else."""
    match = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", _docstring(subject), re.DOTALL | re.MULTILINE)
    lines = match.group(1).splitlines() if match else []
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    entries = [re.match(rf" {{{indent}}}(\*{{0,2}}\w+(?:, \w+)*):", line) for line in lines]
    explained = [name for entry in entries if entry for name in entry.group(1).replace("*", "").split(", ")]
    arguments = list(inspect.signature(_factory(subject)).parameters)
    assert explained == arguments, f"{subject.name}: Args explains {explained}, the signature has {arguments}"


@documented
def check_the_module_has_numbered_equations(subject: Subject):
    """The module's docstring states the technique in equations numbered (1), (2), ..."""
    numbers = re.findall(r"\((\d+)\)", _module_docstring(subject))
    assert "1" in numbers, f"{subject.name}: number the equations in the module's docstring, from (1) on."


@documented
def check_the_module_names_source_and_contract(subject: Subject):
    """The module's docstring says where the technique comes from and which contract it fulfils."""
    missing = [word for word in ("Source:", "Contract:") if word not in _module_docstring(subject)]
    assert not missing, f"{subject.name}: the module's docstring lacks {' and '.join(missing)}"
