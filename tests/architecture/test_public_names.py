"""What a package offers: listed once, sorted, and really there."""

import ast
import importlib

import pytest

from tests.architecture.repository import PACKAGES, ROOT, module_name, python_files


def declared_names(path):
    """The literal value of `__all__`, or None."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return ast.literal_eval(node.value)
    return None


WITH_NAMES = [path for path in python_files(*PACKAGES) if declared_names(path) is not None]


@pytest.mark.parametrize("path", WITH_NAMES, ids=str)
def test_public_names_are_sorted_and_there(path):
    names = declared_names(path)
    module = importlib.import_module(module_name(path))

    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.parametrize("path", python_files(*PACKAGES), ids=str)
def test_only_a_package_re_exports(path):
    assert path.name == "__init__.py" or declared_names(path) is None


@pytest.mark.parametrize("path", python_files(*PACKAGES), ids=str)
def test_no_module_reaches_into_another_ones_private_names(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    private = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        for alias in node.names
        if alias.name.startswith("_")
    ]

    assert private == []
