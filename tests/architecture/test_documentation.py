"""The documentation matches the code: folders, dependencies, settings, commands, links."""

import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import typer

from service.settings import Settings
from tests.architecture.repository import ROOT, repository_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PAGES = [path for path in repository_files() if path.suffix == ".md"]


def package_names(requirements):
    """`caspl-serve[serve]>=1` -> `caspl-serve`."""
    return {re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0] for requirement in requirements}


def table_rows(page):
    """First column of the tables of a page, by the heading above them."""
    rows, heading = {}, ""
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif match := re.match(r"\| `([^`]+)` \| (.+) \|", line):
            rows.setdefault(heading, {})[match[1]] = match[2]
    return rows


def test_the_documented_tree_is_the_tree_on_disk():
    block = re.search(r"```text\n(.*?)```", ARCHITECTURE, re.DOTALL)[1]
    documented = dict(re.match(r"(\w+)/\s+(\S.+)", line).groups() for line in block.splitlines())
    on_disk = {path.parts[0] for path in repository_files() if len(path.parts) > 1}

    assert set(documented) == {name for name in on_disk if not name.startswith(".")}


def test_every_dependency_has_its_reason():
    sections = table_rows("docs/dependencies.md")
    for extra, requirements in {"Always": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items():
        documented = next(rows for heading, rows in sections.items() if extra in heading)

        assert list(documented) == sorted(package_names(requirements)), extra


def test_every_dependency_is_pinned_without_an_address():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    wanted = {name.lower().replace("_", "-") for group in groups for name in package_names(group)}

    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)] == []
    assert wanted - pinned == {"caspl-serve"}


def test_every_setting_is_documented_with_its_variable_and_default():
    tables = table_rows("docs/configuration.md").values()
    documented = {name: row for rows in tables for name, row in rows.items() if row.startswith("`CASPL_")}

    assert list(documented) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        variable, default, meaning = documented[name].split(" | ")
        assert variable == f"`CASPL_{name.upper()}`"
        assert default == f"`{field.default}`"
        assert meaning == field.description


def anchors(page):
    """The anchors of a page's headings, as GitHub derives them."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_every_link_to_a_file_or_heading_resolves():
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            path, _, anchor = link.partition("#")
            target = ROOT / page.parent / path if path else ROOT / page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page}: {link}")

    assert broken == []


def test_every_source_file_in_the_architecture_page_exists():
    named = re.findall(r"`((?:prompt_store|prompted_clip|service|training|tests)/[\w/]+\.py)`", ARCHITECTURE)

    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def shown_commands(page):
    """The `caspl` commands of a page as lists of words, continued lines joined."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?:^(?:\$ (?:\S*/)?)?caspl |`caspl )([^`#\n]+)", text, re.MULTILINE):
        yield line.replace(" &", "").split()


def test_every_make_target_in_the_documentation_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES if page.parent != Path("docs/results")]
    shown = set(re.findall(r"(?:^\$ |`)make (?:PYTHON=\S+ )?([a-z-]+)", "\n".join(texts), re.MULTILINE))

    assert shown >= {"demo", "test"}
    assert {"demo", "test"} <= set(re.findall(r"^\$ make ([a-z-]+)", README, re.MULTILINE))
    assert shown <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_every_option_in_the_documentation_exists():
    commands = {point.name: typer.main.get_command(point.load()) for point in entry_points(group="caspl.commands")}

    unknown = []
    for page in PAGES:
        if page.parent in {Path("docs/results"), Path("docs/reference")}:
            continue  # generated: from results, whose commands are those of their commits, and from the commands
        for name, *words in shown_commands(page):
            if name.startswith("--"):
                continue
            command = commands[name]
            while words and (inner := getattr(command, "commands", {}).get(words[0])):
                command, words = inner, words[1:]
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            options = {word.split("=")[0] for word in words if word.startswith("-")}
            unknown += [f"{page}: caspl {name} {option}" for option in options - known]

    assert unknown == []


def test_every_entry_point_loads():
    for point in entry_points(group="caspl.commands"):
        assert callable(point.load()), point.name


def test_every_decision_is_listed():
    index = (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8")
    pages = {path.name for path in repository_files() if path.parent == Path("docs/decisions")} - {"README.md"}

    assert set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", index)) == pages


def test_readme_is_shorter_than_150_lines():
    assert len(README.splitlines()) < 150
