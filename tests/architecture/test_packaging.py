"""The container image and the wheel."""

import ast
import fnmatch
import json
import re
import shlex
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import PurePosixPath

import typer

from service.cli import serve_app
from service.settings import Settings
from tests.architecture.repository import PACKAGES, ROOT, python_files, repository_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions():
    """The Dockerfile as (instruction, rest) with continued lines joined and comments left out."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def copied_sources():
    """The repository paths that the image copies."""
    for name, rest in instructions():
        words = shlex.split(rest)
        if name == "COPY" and not words[0].startswith("--from="):
            yield from words[:-1]


def only(name):
    """The rest of the last instruction of that name."""
    return [rest for instruction, rest in instructions() if instruction == name][-1]


def test_the_dockerfile_holds_known_instructions_only():
    known = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"}

    assert {name for name, _ in instructions()} <= known


def test_every_path_that_the_image_copies_exists_and_is_not_ignored():
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    assert [source for source in copied_sources() if not (ROOT / source).exists()] == []
    assert [source for source in copied_sources() if f"!{source}" not in rules] == []


def test_the_image_copies_from_stages_that_exist():
    stages = {words[2] for name, rest in instructions() if name == "FROM" and len(words := rest.split()) == 3}
    used = {word.removeprefix("--from=") for _, rest in instructions() for word in rest.split() if "--from=" in word}

    assert used <= stages


def test_the_image_runs_a_command_line_that_parses():
    program, command, *arguments = json.loads(only("CMD"))
    parser = typer.main.get_command(serve_app)

    context = parser.make_context("serve", arguments)

    assert (program, command) == ("caspl", "serve")
    assert context.params["host"] == "0.0.0.0"  # noqa: S104
    assert str(context.params["keys_file"]) == "/run/secrets/caspl-keys"
    assert str(context.params["store"]) == "/store"


def test_the_image_exposes_and_probes_the_port_it_listens_on():
    port = str(Settings.model_fields["port"].default)
    probe = json.loads(only("HEALTHCHECK").split("CMD", 1)[1])

    assert only("EXPOSE") == port
    assert f"http://127.0.0.1:{port}/readyz" in probe[-1]
    compile(probe[-1], "probe", "exec")


def test_the_image_runs_as_an_unprivileged_user():
    assert only("USER") == "65532:65532"
    assert "/store" in json.loads(only("VOLUME"))


TEACHER = "prompted_clip/demo/demo-teacher.safetensors"
"""8 MB that only the demo's training reads, from a checkout."""


def test_the_wheel_takes_every_data_file_but_the_teacher():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    left_out = [
        str(path)
        for path in repository_files()
        if path.parts[0] in data
        and path.suffix != ".py"
        and not any(matches(PurePosixPath(*path.parts[1:]), pattern) for pattern in data[path.parts[0]])
    ]

    assert left_out == [TEACHER]


def matches(path, pattern):
    """Whether setuptools' glob `pattern` takes `path`; `**` crosses folders."""
    expression = fnmatch.translate(pattern.replace("**/*", "\0")).replace("\\\0", ".*").replace("\0", ".*")
    return re.match(expression, str(path)) is not None


def plain(name):
    """A distribution's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", name, maxsplit=1)[0]).lower()


def imported_distributions(*folders):
    """Modules that the Python files below these folders import by name, each with the distributions that hold it."""
    found = {}
    owners = packages_distributions()
    for path in python_files(*folders):
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            tops = {name.split(".")[0] for name in names} - {*PACKAGES, "tests", "benchmarks"} - sys.stdlib_module_names
            found |= {top: {plain(owner) for owner in owners.get(top, [top])} for top in tops}
    return found


def declared(*extras):
    """Distributions that pyproject.toml names, always and in these extras."""
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return {plain(requirement) for group in groups for requirement in group}


def test_every_imported_package_is_a_declared_dependency():
    extras_by_folders = {
        ("prompt_store",): ("hub",),
        ("caspl",): ("serve", "export"),
        ("service", "prompted_clip"): ("serve", "traces", "export", "openvino"),
        ("training", "prompted_clip"): ("train", "evaluate", "export", "openvino"),
        ("tests",): ("serve", "traces", "train", "evaluate", "bench", "export", "openvino", "dev", "fuzz"),
    }
    for folders, extras in extras_by_folders.items():
        expected = declared(*extras)
        assert [top for top, owners in imported_distributions(*folders).items() if not owners & expected] == [], folders
