"""The `caspl` command finds and loads its subcommands late."""

import os
import shlex
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

import caspl
from caspl import __main__ as command
from tests.documentation.test_console_blocks import parse_error

greeting_app = typer.Typer()


@greeting_app.command()
def greet(name: str) -> None:
    """Say hello."""
    typer.echo(f"hello {name}")


waiting_app = typer.Typer()


@waiting_app.command()
def wait() -> None:
    """Wait until Ctrl-C."""
    raise KeyboardInterrupt


def entry(name, value):
    return EntryPoint(name, value, command.GROUP)


@pytest.fixture
def run(monkeypatch):
    commands = [
        entry("greet", "tests.caspl.test_command:greeting_app"),
        entry("wait", "tests.caspl.test_command:waiting_app"),
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
def test_a_command_whose_extra_is_missing_names_the_package_to_install(run, arguments):
    result = run(*arguments)

    assert result.exit_code == 1
    assert 'pip install "caspl-serve[serve]"' in result.stderr


def test_an_unknown_command_is_a_usage_error(run):
    assert run("fly").exit_code == 2


@pytest.mark.parametrize(("typed", "meant"), [("stroe", "store"), ("serv", "serve"), ("great", "greet")])
def test_a_mistyped_command_suggests_the_right_one(run, typed, meant):
    assert f"Did you mean '{meant}'?" in run(typed).stderr


def test_ctrl_c_ends_a_command_with_one_line_and_the_status_of_sigint(run):
    result = run("wait")

    assert (result.exit_code, result.stderr) == (130, "Interrupted\n")


@pytest.mark.parametrize("name", sorted(command.installed_commands()))
def test_flags_are_shown_without_a_value(name):
    texts = help_texts(command.load_command(command.installed_commands()[name]))

    assert all("--help" in text for text in texts)
    assert [text for text in texts if "<bool>" in text] == []


def help_texts(parsed):
    """The help of a command and its subcommands."""
    subcommands = getattr(parsed, "commands", {}).values()
    return [parsed.get_help(typer.Context(parsed)), *(text for each in subcommands for text in help_texts(each))]


def test_the_version_is_printed(run):
    result = run("--version")

    assert (result.exit_code, result.stdout) == (0, f"caspl {caspl.__version__}\n")


def test_a_command_that_needs_code_which_the_container_image_leaves_out_names_a_full_installation(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "training", None)  # its import raises ModuleNotFoundError
    for name in [name for name in sys.modules if name.startswith(("training.", "caspl.upload_command"))]:
        monkeypatch.delitem(sys.modules, name)
    commands = {"upload": entry("upload", "caspl.upload_command:upload_app")}
    monkeypatch.setattr(command.LazyGroup, "find_commands", staticmethod(lambda: commands))

    assert "Not installed: use a full installation of caspl-serve" in run("--help").stdout
    result = run("upload", "shelf.safetensors")
    assert result.exit_code == 1
    assert "use a full installation of caspl-serve" in result.stderr


def test_a_command_exists_only_where_its_package_does(monkeypatch):
    assert "bench" in command.installed_commands()

    monkeypatch.setattr(command, "entry_points", lambda **_: [entry("bench", "no_such_package.cli:app")])

    assert command.installed_commands() == {}


def every_command():
    """Each command and subcommand with its words, such as `store ls`."""
    pending = [(name, command.load_command(entry)) for name, entry in sorted(command.installed_commands().items())]
    while pending:
        words, parsed = pending.pop()
        yield words, parsed
        pending += [(f"{words} {name}", inner) for name, inner in getattr(parsed, "commands", {}).items()]


COMMANDS = dict(every_command())


@pytest.mark.parametrize("words", COMMANDS)
def test_every_help_ends_with_an_example_that_parses(words):
    text = COMMANDS[words].get_help(typer.Context(COMMANDS[words], info_name=f"caspl {words}"))
    _, _, example = text.rpartition("Example:\n")

    assert f"{example.strip()} ".startswith(f"caspl {words} ")
    assert len(example.strip().splitlines()) == 1
    assert parse_error(example.strip()) is None
    assert missing_parameters(example.strip()) == set()


def missing_parameters(example):
    """Required parameters that an example lacks."""
    name, *arguments = shlex.split(example)[1:]
    parsed = COMMANDS[name]
    while arguments and arguments[0] in getattr(parsed, "commands", {}):
        parsed, arguments = parsed.commands[arguments[0]], arguments[1:]
    given, _, _ = parsed.make_parser(typer.Context(parsed)).parse_args(arguments)
    return {one.name for one in parsed.params if one.required and given.get(one.name) in (None, ())}


@pytest.mark.parametrize("words", COMMANDS)
def test_help_texts_are_phrases_and_commands_are_sentences(words):
    parsed = COMMANDS[words]
    texts = [one.help for one in parsed.params if getattr(one, "help", None) and one.name != "help"]

    assert parsed.help.split("\n\n")[0].endswith(".")
    assert [text for text in texts if text.endswith(".") or text.startswith("The ")] == []


@pytest.mark.parametrize(
    "words", ["classify", "teach", "boost", "adapt", "fit", "evaluate", "reproduce", "bench serve"]
)
def test_commands_with_progress_can_be_quiet(words):
    assert "--quiet" in {option for parameter in COMMANDS[words].params for option in parameter.opts}


@pytest.mark.parametrize(("typed", "meant"), [("--domian", "--domain"), ("--recursiv", "--recursive")])
def test_a_mistyped_option_suggests_the_right_one(typed, meant):
    result = CliRunner().invoke(command.app, ["classify", typed])

    assert result.exit_code == 2
    assert meant in result.stderr


def test_a_value_that_is_not_a_choice_is_refused_without_a_technical_prefix():
    result = CliRunner().invoke(command.app, ["teach", "pictures", "--domain", "pets", "--method", "knn"])

    assert result.exit_code == 2
    assert "Invalid value for '--method': 'knn' is not one of 'auto', 'gda'" in result.stderr


def complete(words):
    """Bash's completions of a line that ends in an incomplete word."""
    variables = {"_CASPL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    run = [sys.executable, "-P", "-c", "import sys; sys.argv = ['caspl']; from caspl.__main__ import main; main()"]
    return subprocess.run(run, env=os.environ | variables, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("caspl cla", ["classify"]),
        ("caspl bo", ["boost"]),
        ("caspl store ro", ["rollback"]),
        ("caspl classify --rec", ["--recursive"]),
        ("caspl store gc --dry", ["--dry-run"]),
    ],
)
def test_commands_and_options_are_completed(words, offered):
    assert complete(words) == offered


def test_the_completion_script_can_be_shown(run):
    result = CliRunner().invoke(command.app, ["--show-completion", "bash"], prog_name="caspl")

    assert result.exit_code == 0
    assert "_CASPL_COMPLETE" in result.stdout
