"""The one command, `caspl`: finds its subcommands among the installed packages and loads them one at a time.

Knows the entry-point group only. Packages name their commands there; nothing of theirs is imported before the
command is used or listed in the help. A command whose extra is not installed is listed and says what to install.
"""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
from typer.core import TyperGroup

GROUP: Final = "caspl.commands"
_EXTRA_BY_PACKAGE: Final = {"benchmarks": "bench", "service": "serve", "training": "train", "prompted_clip": "serve"}


def installed_commands() -> dict[str, EntryPoint]:
    """Return the commands of all installed packages by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _stand_in(entry: EntryPoint, missing: str) -> typer.Typer:
    """A command that says what to install in place of one that cannot be loaded."""
    extra = _EXTRA_BY_PACKAGE.get(entry.value.split(".", 1)[0].split(":", 1)[0])
    install = f'pip install "caspl-serve[{extra}]"' if extra else f"pip install {missing}"
    app = typer.Typer(add_completion=False)

    @app.command(
        name=entry.name,
        help=f"Not installed: {install}",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    )
    def explain() -> None:
        typer.echo(f"caspl {entry.name} needs the package {missing}, which is not installed: {install}", err=True)
        raise typer.Exit(1)

    return app


def load_command(entry: EntryPoint) -> Any:  # noqa: ANN401 - typer keeps its command classes to itself
    """Import a command; one whose dependencies are missing becomes a command that says so."""
    try:
        app = entry.load()
    except ModuleNotFoundError as error:
        app = _stand_in(entry, error.name or "of this command")
    command = typer.main.get_command(app)
    command.name = entry.name
    return command


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are asked for."""

    find_commands: Callable[[], dict[str, EntryPoint]] = staticmethod(installed_commands)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 - the signature is typer's
        """Return all names without importing anything."""
        return sorted(self.find_commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401, ARG002 - the signature is typer's
        """Import one command; None when there is none of that name."""
        entry = self.find_commands().get(cmd_name)
        return load_command(entry) if entry is not None else None


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def caspl() -> None:
    """Learn prompts for a frozen CLIP, keep them as versioned bundles, and serve many domains at once."""


def main() -> None:
    """Run the command line; the console script."""
    sys.exit(typer.main.get_command(app)(prog_name="caspl"))


if __name__ == "__main__":
    main()
