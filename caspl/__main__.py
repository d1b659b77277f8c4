"""The command `caspl`: its subcommands are the entry points of the group `caspl.commands`, imported when used.

A subcommand whose extra is not installed is listed with the command that installs it. One whose package is missing is
left out: `bench` exists only in a source checkout, and the container image has no training.
"""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from importlib.util import find_spec
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

GROUP: Final = "caspl.commands"
INTERRUPTED: Final = 130
_EXTRA_BY_PACKAGE: Final = {"benchmarks": "bench", "service": "serve", "training": "train", "prompted_clip": "serve"}


def installed_commands() -> dict[str, EntryPoint]:
    """All subcommands by name, except those whose package this installation lacks."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if find_spec(_package(entry)) is not None}


def _package(entry: EntryPoint) -> str:
    return entry.module.split(".", 1)[0]


def _stand_in(entry: EntryPoint, missing: str) -> typer.Typer:
    """A command that prints what to install, in place of one that cannot be imported."""
    if extra := _EXTRA_BY_PACKAGE.get(_package(entry)):
        install = f'pip install "caspl-serve[{extra}]"'
    elif missing.split(".", 1)[0] in _EXTRA_BY_PACKAGE:  # not a distribution: code that the container image leaves out
        install = "use a full installation of caspl-serve"
    else:
        install = f"pip install {missing}"
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
    """Import a command, or make its stand-in if a dependency is missing."""
    try:
        app = entry.load()
    except ModuleNotFoundError as error:
        app = _stand_in(entry, error.name or "of this command")
    command = typer.main.get_command(app)
    command.name = entry.name
    return command


class LazyGroup(TyperGroup):
    """A group that imports its commands on first use."""

    find_commands: Callable[[], dict[str, EntryPoint]] = staticmethod(installed_commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - the signature is typer's
        """Find a command; typer suggests similar names of `commands` if there is none."""
        self.commands: dict[str, Any] = dict(self.find_commands())
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - the signature is typer's
        """Run the command; Ctrl-C ends it with one line and the shells' status for SIGINT."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from prompt_store.validation import plain_message  # noqa: PLC0415  imports slowly

            error.message = plain_message(error.message)
            raise
        except KeyboardInterrupt:
            typer.echo("Interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 - the signature is typer's
        """All names; imports nothing."""
        return sorted(self.find_commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401, ARG002 - the signature is typer's
        """Import one command; None if there is no such command."""
        entry = self.find_commands().get(cmd_name)
        return load_command(entry) if entry is not None else None


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, rich_markup_mode=None)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"caspl {version('caspl-serve')}")
        raise typer.Exit


@app.callback(epilog="\b\nExample:\n  caspl serve --demo")
def caspl(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Learn prompts for a frozen CLIP, keep them as versioned bundles, and serve many domains at once."""


def main() -> None:
    """Entry point of the console script."""
    sys.exit(typer.main.get_command(app)(prog_name="caspl"))


if __name__ == "__main__":
    main()
