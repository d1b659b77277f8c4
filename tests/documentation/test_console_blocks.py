"""The ```console blocks of README.md and docs/*.md: every command runs, or is listed with the reason why it cannot."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from itertools import takewhile
from pathlib import Path

import pytest
import typer

from prompt_store import read_bundle, write_bundle
from service.demo.files import ASSETS
from service.demo.process import running
from tests.architecture.repository import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON_PAGES = {"README.md", "tutorial.md"}
"""Their ```python blocks run between the commands; tests/caspl/test_documentation.py runs those of docs/python.md."""
QUICK_PAGES = {"README.md", "http-api.md"}
"""Run by `make test`; the other pages are slow."""
NOT_RUN = {
    r"(\S*/)?pip install": "installs packages",
    r"\. \.venv/bin/activate": "the tests run in the environment already",
    r"make (demo|test|demo-train|PYTHON=)": "runs the tests themselves, or takes minutes",
    r"(\S*/)?caspl (ablate|adapt|boost|evaluate|reproduce)": "downloads pretrained weights and trains for minutes",
    r"(\S*/)?caspl fit --data labelled/": "needs labelled images",
    r"caspl export .* --out|paste": "takes many seconds; tests/caspl/test_exporting_page.py runs it",
    r"caspl doctor": "its result depends on the machine",
    r"caspl import": "needs checkpoints of other projects",
    r"(CASPL_\w+=\S+ |\S*/)?caspl serve .*(--pretrained|local-dir:)": "needs pretrained weights",
    r"(\S*/)?caspl (push|pull|serve .*--follow) ": "needs a registry; tests/service/sources runs them with one",
    r"hf download": "downloads pretrained weights",
    r"pip wheel": "downloads packages",
    r"(CASPL_\w+=\S+ |\S*/)?caspl serve --demo": "the fixture `server` runs it",
    r"(\S*/)?caspl serve --host": "listens on all addresses",
    r"(\S*/)?caspl bench": "measures for minutes",
    r"caspl plan .*--measurements docs/": "tests/documentation/test_scale.py runs it and compares its output",
    r"python (-P )?-m benchmarks": "measures for minutes",
    r"python (-P )?-m training\.demo( |.* --n-test 600)": "draws thousands of pictures or trains for minutes",
    r"sudo ": "changes the machine",
    r"(cd deploy && .*)?docker ": "needs a Docker daemon",
    r"kubectl ": "needs a cluster",
    r"curl .*…": "contains a placeholder",
    r"caspl teach /media/frigate": "needs the media folder of Frigate",
    r"caspl classify photo.jpg --domain driveway": "needs the domain of the command before",
}
SHELL = set("&|;<>()")
"""Characters that end the words of a command."""
UsageError = typer.BadParameter.__base__  # click's, which typer does not export
BUNDLES = {
    "shelf-fit.safetensors": "shelf",
    "flowers.safetensors": "flowers",
    "flowers-fit.safetensors": "flowers",
}
"""Bundles that the pages train, and their domains: made from a demo bundle."""


def console_commands(page):
    """The commands of a page's ```console blocks; indented lines continue a command, other lines are output."""
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(console|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language == "python":
            if page.name in PYTHON_PAGES:
                yield f"python -P - <<'EOF'\n{block}EOF"
            continue
        command = ""
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command
                command = line.removeprefix("$ ")
            elif command and line.startswith("    "):
                command += "\n" + line
        if command:
            yield command


def reason_not_to_run(command):
    """Why a command is not run here, or None."""
    joined = " ".join(command.replace("\\\n", " ").split())
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, joined)), None)


ALL_COMMANDS = [command for page in PAGES for command in console_commands(page)]
RUN_PAGES = [page for page in PAGES if any(reason_not_to_run(command) is None for command in console_commands(page))]


@pytest.fixture(scope="module")
def server():
    """The port of `caspl serve --demo`."""
    with running(ASSETS, []) as (_, client):
        yield client.base_url.port


@pytest.fixture
def workplace(tmp_path):
    """A folder like a checkout after `make demo`, with the inputs that the pages mention."""
    (tmp_path / "service").symlink_to(ROOT / "service")
    (tmp_path / "README.md").symlink_to(ROOT / "README.md")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    shutil.copy(min((ASSETS / "images").glob("*/*.jpg")), tmp_path / "photo.jpg")
    for image in (ASSETS / "images").glob("*/*.*"):
        folder = tmp_path / "pictures" / image.stem[:-2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / f"{image.parent.name}{image.suffix}")
    with zipfile.ZipFile(tmp_path / "parts.zip", "w") as export:
        for path in sorted((tmp_path / "pictures").rglob("*.*")):
            export.write(path, Path("train", path.relative_to(tmp_path / "pictures")))
    demo = read_bundle((ASSETS / "bundles" / "satellite.safetensors").read_bytes())
    for name, domain in BUNDLES.items():
        manifest = demo.manifest.model_copy(update={"domain": domain})
        (tmp_path / name).write_bytes(write_bundle(manifest, demo.tensors))
    for name in ("old", "new"):
        shutil.copy(tmp_path / "flowers.safetensors", tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[] if page.name in QUICK_PAGES else [pytest.mark.slow])
        for page in RUN_PAGES
    ],
)
def test_every_command_of_a_page_succeeds(page, server, workplace):
    commands = [command for command in console_commands(page) if reason_not_to_run(command) is None]
    script = ['curl() { command curl --silent --show-error --fail-with-body --max-time 20 "$@"; }']
    for command in commands:
        here = re.sub(r"(localhost|127\.0\.0\.1):8000", rf"\1:{server}", command)
        script += [f"echo {shlex.quote(f'$ {command}')}", here, "result=$?; [ $result = 0 ] || exit $result"]

    run = subprocess.run(
        ["bash", "-o", "pipefail", "-c", "\n".join(script)],
        cwd=workplace,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "no_proxy": "localhost",
            "CASPL_URL": f"http://localhost:{server}",
        },
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-2000:]}"


def parse_error(command):
    """The error of the CLI's own parser for a `caspl` command, or None. Files need not exist."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.wordchars += ",:@…${}"
    words = list(takewhile(lambda word: not set(word) <= SHELL, lexer))
    group = {point.name: typer.main.get_command(point.load()) for point in entry_points(group="caspl.commands")}
    name, arguments = words[1], words[2:]
    parsed, path = group[name], name
    while arguments and arguments[0] in getattr(parsed, "commands", {}):
        parsed, path = parsed.commands[arguments[0]], f"{path} {arguments[0]}"
        arguments = arguments[1:]
    try:
        _, rest, _ = parsed.make_parser(typer.Context(parsed)).parse_args(arguments)
    except UsageError as error:
        return f"caspl {path}: {error.message}"
    return f"caspl {path}: unexpected {rest}" if rest else None


def test_every_caspl_command_parses():
    commands = [command for command in ALL_COMMANDS if re.match(r"(\S*/)?caspl ", command)]
    errors = [error for command in commands if (error := parse_error(command))]

    assert commands
    assert errors == []


def test_every_reason_not_to_run_applies_to_a_command():
    joined = [" ".join(command.replace("\\\n", " ").split()) for command in ALL_COMMANDS]

    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, command) for command in joined)] == []
