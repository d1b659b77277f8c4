"""docs/scale.md: its tables are generated, and its plans are what the commands print."""

import re
import shlex
import shutil

import pytest
from typer.testing import CliRunner

from benchmarks.tables import fill_tables
from caspl.plan_command import plan_app
from tests.architecture.repository import ROOT
from tests.documentation.test_console_blocks import reason_not_to_run

PAGE = ROOT / "docs" / "scale.md"
BLOCK = re.compile(r"^```console\n\$ (caspl plan .*?--measurements docs/.*?)^```", re.MULTILINE | re.DOTALL)


def plans():
    """Each command and the output below it."""
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        command = re.match(r"(?:.*\\\n)*.*\n", block)[0]
        yield command.replace("\\\n", " ").strip(), block.removeprefix(command)


@pytest.mark.parametrize(("command", "output"), list(plans()), ids=lambda text: text.partition("--measurements")[0])
def test_a_plan_is_what_its_command_prints(command, output, monkeypatch):
    monkeypatch.chdir(ROOT)

    shown = CliRunner().invoke(plan_app, shlex.split(command)[2:])

    assert reason_not_to_run(command)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == output


def test_the_page_has_plans():
    assert len(list(plans())) >= 3


def test_the_tables_are_those_of_the_results(tmp_path):
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    page = shutil.copy(PAGE, tmp_path / "scale.md")

    fill_tables(page, tmp_path / "results")

    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8"), "run `caspl bench table`"
