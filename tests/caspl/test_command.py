"""The `caspl` command finds and loads its subcommands late."""

from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

import caspl
from caspl import __main__ as command

greeting_app = typer.Typer()


@greeting_app.command()
def greet(name: str) -> None:
    """Say hello."""
    typer.echo(f"hello {name}")


def entry(name, value):
    return EntryPoint(name, value, command.GROUP)


@pytest.fixture
def run(monkeypatch):
    commands = [
        entry("greet", "tests.caspl.test_command:greeting_app"),
        entry("serve", "service_that_is_not_installed.cli:app"),
        entry("store", "prompt_store.cli:store_app"),
    ]
    monkeypatch.setattr(
        command.LazyGroup, "find_commands", staticmethod(lambda: {entry.name: entry for entry in commands})
    )
    monkeypatch.setitem(command.__dict__["_EXTRA_BY_PACKAGE"], "service_that_is_not_installed", "serve")
    return lambda *arguments: CliRunner().invoke(command.app, arguments)


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


def test_the_version_is_printed(run):
    result = run("--version")

    assert (result.exit_code, result.stdout) == (0, f"caspl {caspl.__version__}\n")


def test_bench_exists_only_where_its_package_does(monkeypatch):
    assert "bench" in command.installed_commands()

    monkeypatch.setattr(command, "CHECKOUT_ONLY", "no_such_package")
    monkeypatch.setattr(command, "entry_points", lambda **_: [entry("bench", "no_such_package.cli:app")])

    assert command.installed_commands() == {}
