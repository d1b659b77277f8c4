"""The `caspl` command finds and loads its subcommands late."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from prompt_store import caspl

ROOT = Path(__file__).parents[2]

greeting_app = typer.Typer()


@greeting_app.command()
def greet(name: str) -> None:
    """Say hello."""
    typer.echo(f"hello {name}")


def entry(name, value):
    return EntryPoint(name, value, caspl.GROUP)


@pytest.fixture
def run(monkeypatch):
    commands = [
        entry("greet", "tests.prompt_store.test_caspl:greeting_app"),
        entry("serve", "service_that_is_not_installed.cli:app"),
        entry("store", "prompt_store.cli:store_app"),
    ]
    monkeypatch.setattr(
        caspl.LazyGroup, "find_commands", staticmethod(lambda: {command.name: command for command in commands})
    )
    monkeypatch.setitem(caspl.__dict__["_EXTRA_BY_PACKAGE"], "service_that_is_not_installed", "serve")
    return lambda *arguments: CliRunner().invoke(caspl.app, arguments)


def test_help_lists_every_command_and_missing_extras(run):
    result = run("--help")

    assert result.exit_code == 0
    assert "Say hello." in result.stdout
    assert 'pip install "caspl-serve[serve]"' in result.stdout


def test_a_command_runs_under_its_entry_points_name(run):
    result = run("greet", "you")

    assert (result.exit_code, result.stdout) == (0, "hello you\n")


def test_a_command_group_runs_its_subcommands(run, tmp_path):
    result = run("store", "ls", "--store", str(tmp_path / "none"))

    assert result.exit_code == 1
    assert "not_a_store" in result.stderr


@pytest.mark.parametrize("arguments", [("serve",), ("serve", "--port", "80"), ("serve", "--help")])
def test_a_command_whose_extra_is_missing_says_what_to_install(run, arguments):
    result = run(*arguments)

    assert result.exit_code == 1
    assert 'pip install "caspl-serve[serve]"' in result.stderr


def test_an_unknown_command_is_a_usage_error(run):
    assert run("fly").exit_code == 2


def in_fresh_process(code):
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout


def test_importing_the_command_loads_no_other_package_of_ours():
    loaded = in_fresh_process("import sys, prompt_store.caspl; print(*sys.modules, sep='\\n')").split("\n")

    assert not {"torch", "numpy.testing", "service", "training", "prompted_clip", "prompt_store.cli"} & set(loaded)


def test_the_help_page_loads_no_torch():
    code = (
        "import sys, prompt_store.caspl as caspl\nsys.argv = ['caspl', '--help']\n"
        "try:\n    caspl.main()\nexcept SystemExit as end:\n    assert not end.code\nprint('torch' in sys.modules)"
    )

    assert in_fresh_process(code).endswith("False\n")
