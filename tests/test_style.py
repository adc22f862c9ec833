"""Lint, format and types, inside the test command. Doctests run through pytest's own `--doctest-modules`."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = {
    "lint": ["ruff", "check"],
    "format": ["ruff", "format", "--check"],
    "types": ["mypy"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_style(name):
    command = [sys.executable, "-m", *COMMANDS[name]]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, f"{' '.join(command[2:])}:\n{run.stdout}{run.stderr}"


def test_doctests_are_collected(request):
    options = request.config.option
    assert options.doctestmodules, "pytest must run with --doctest-modules"
    assert "momentax" in request.config.getini("testpaths"), "pytest must visit momentax, where the examples are"
