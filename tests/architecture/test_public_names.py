"""Public names: listed once, sorted and defined; private names stay in their module."""

import ast
import importlib

from tests.architecture.repository import PACKAGES, ROOT, module_name, python_files


def declared_names(path):
    """The literal value of `__all__`, or None."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return ast.literal_eval(node.value)
    return None


PUBLIC_NAMES = {path: names for path in python_files(*PACKAGES) if (names := declared_names(path)) is not None}


def test_public_names_are_sorted_and_defined():
    unsorted = [str(path) for path, names in PUBLIC_NAMES.items() if names != sorted(set(names))]
    undefined = [
        f"{module_name(path)}.{name}"
        for path, names in PUBLIC_NAMES.items()
        for name in names
        if not hasattr(importlib.import_module(module_name(path)), name)
    ]

    assert (unsorted, undefined) == ([], [])


def test_only_packages_re_export():
    assert [str(path) for path in PUBLIC_NAMES if path.name != "__init__.py"] == []


def test_no_module_imports_private_names_of_another():
    private = [
        f"{path}: {node.module}.{alias.name}"
        for path in python_files(*PACKAGES)
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        for alias in node.names
        if alias.name.startswith("_")
    ]

    assert private == []
