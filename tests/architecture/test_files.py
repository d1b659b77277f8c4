"""Every file: its size, its name, and forbidden content."""

import re
from collections import Counter

from tests.architecture.repository import PACKAGES, ROOT, python_files, repository_files, text_files

MAX_LINES = 400
MAX_FILES = 8
MAX_BYTES = 16 * 1024 * 1024
BANNED_NAMES = {"utils", "helpers", "common", "base", "manager", "factory", "core"}
METHOD_NAMES = re.compile(
    r"(?<![a-z])(coop|cocoop|kgcoop|maple|promptsrc|prograd|promptkd|proda|dept|upt|ivlp|vpt)(?![a-z])", re.IGNORECASE
)
MACHINE_PATH = re.compile(r"(?<![\w.)}])/(?:work|home|root|Users)/[\w.]")
INDEX_ADDRESS = re.compile(r"https?://[\w.-]*py[p]i|file:/{2,}|-{1,2}(?:extra-)?index-u[r]l|--find-li[n]ks")
BARE_SUPPRESSION = re.compile(r"# type: ignor[e](?!\[)|# noq[a](?!:)")


def test_no_python_file_is_longer_than_400_lines():
    too_long = {
        str(path): n_lines
        for path in python_files()
        if (n_lines := len((ROOT / path).read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }

    assert too_long == {}


def test_no_folder_of_the_service_has_more_than_eight_python_files():
    n_files = Counter(str(path.parent) for path in python_files("service"))

    assert {folder: n for folder, n in n_files.items() if n > MAX_FILES and folder != "service/http/routes"} == {}


def test_no_file_is_larger_than_16_mib():
    assert [str(path) for path in repository_files() if (ROOT / path).stat().st_size > MAX_BYTES] == []


def test_no_file_or_folder_has_a_generic_name():
    generic = [str(path) for path in python_files() if BANNED_NAMES & {path.stem, *path.parts[:-1]}]

    assert generic == []


def test_the_service_names_no_learning_method():
    found = [
        f"{path}: {match.group()}"
        for path in python_files("service")
        for match in METHOD_NAMES.finditer((ROOT / path).read_text(encoding="utf-8"))
    ]

    assert found == []


def test_no_file_contains_a_machine_path_an_index_address_or_a_bare_suppression():
    forbidden = re.compile("|".join(rf"(?:{one.pattern})" for one in (MACHINE_PATH, INDEX_ADDRESS, BARE_SUPPRESSION)))
    found = [
        f"{path}:{n_line}: {line.strip()[:80]}"
        for path, text in text_files()
        if forbidden.search(text)
        for n_line, line in enumerate(text.splitlines(), 1)
        if forbidden.search(line)
    ]

    assert found == []


def test_every_package_is_marked_as_typed():
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file(), package
