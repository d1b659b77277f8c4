"""The files in the wheel, and the packages that the code imports; tests/deploy has the container images."""

import ast
import fnmatch
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import PurePosixPath

from tests.architecture.repository import PACKAGES, ROOT, python_files, repository_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


TEACHERS = ["prompted_clip/demo/demo-second-teacher.safetensors", "prompted_clip/demo/demo-teacher.safetensors"]
"""8 MB each that only the demo's training reads, from a checkout."""


def test_the_wheel_takes_every_data_file_but_the_teachers():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    left_out = [
        str(path)
        for path in repository_files()
        if path.parts[0] in data
        and path.suffix != ".py"
        and not any(matches(PurePosixPath(*path.parts[1:]), pattern) for pattern in data[path.parts[0]])
    ]

    assert sorted(left_out) == TEACHERS


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
        ("prompt_store",): ("hub", "s3"),
        ("caspl",): ("serve", "export"),
        ("service", "prompted_clip"): ("serve", "ray", "traces", "export", "openvino"),
        ("training", "prompted_clip"): ("train", "evaluate", "export", "openvino"),
        ("tests",): ("serve", "s3", "ray", "traces", "train", "evaluate", "bench", "export", "openvino", "dev", "fuzz"),
    }
    for folders, extras in extras_by_folders.items():
        expected = declared(*extras)
        assert [top for top, owners in imported_distributions(*folders).items() if not owners & expected] == [], folders
