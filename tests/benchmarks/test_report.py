"""A result is one object, one section of a page, and files; bars say whether they are met."""

import json
import math
import sys

import numpy as np
import pytest

from benchmarks.interleaved import Ratio
from benchmarks.report import Bar, Measured, Plot, Report, Table, as_text


def report():
    made = Report("engine", {"threads": 2}, command="caspl bench engine")
    made.numbers = [
        Measured("good", Ratio.of([0.96, 0.97, 0.98]), "one / other", Bar(">=", 0.95)),
        Measured("bad", Ratio.of([0.2]), "more", Bar("<=", 0.1)),
        Measured("free", Ratio.of([np.float64(3.0)]), "nothing asked"),
    ]
    made.tables["Rates"] = Table(("way", "per s"), [("single", 1), ("mixed", 2)])
    made.samples = {"rates": {1: [np.float32(0.5), math.nan]}}
    made.plots = {
        "Rates": Plot("per s", "", {"": (["a", "b"], [1.0, 2.0])}),
        "Line": Plot("x", "y", {"l": ([1, 2], [3.0, 4.0])}),
    }
    return made


def test_the_object_holds_ratios_with_spread_and_all_that_belongs_to_them():
    whole = json.loads(json.dumps(report().as_object(), allow_nan=False))

    assert whole["ratios"] == {"good": 0.97, "bad": 0.2, "free": 3.0}
    assert whole["spread"]["good"]["n_rounds"] == 3
    assert whole["bars"] == {"good": {"bar": "≥ 0.95", "is_met": True}, "bad": {"bar": "≤ 0.1", "is_met": False}}
    assert whole["samples"] == {"rates": {"1": [0.5, None]}}
    assert set(whole) >= {"date", "hardware", "versions", "command", "settings", "notes", "tables"}


def test_a_missed_bar_is_as_plain_as_a_met_one():
    text = report().markdown()

    assert "| ≥ 0.95 | met |" in text
    assert "| ≤ 0.1 | **missed** |" in text


@pytest.mark.parametrize(
    ("sense", "value", "is_met"), [(">=", 1.0, True), (">=", 0.9, False), ("<=", 1.0, True), ("<=", 1.1, False)]
)
def test_a_bar_is_met_at_its_limit(sense, value, is_met):
    assert Bar(sense, 1.0).is_met(value) is is_met


def test_no_number_meets_no_bar():
    assert not Bar("<=", 1.0).is_met(math.nan)


def test_three_files_are_written_and_the_page_is_filled(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench-engine:start -->\n<!-- bench-engine:end -->\nafter\n")

    told = report().write(tmp_path / "out", page)

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"bench-engine.{end}" for end in ("json", "md", "png")
    ]
    assert report().markdown() in page.read_text()
    assert len(told) == 3


def test_the_numbers_of_a_list_share_a_line_and_nothing_else_changes():
    found = {
        "a": [1, -2.5, 1e-9, 3e20],
        "b": [],
        "c": ["[\n 1,\n 2]", "x"],
        "d": [[1, 2], {"e": [0.5]}],
        "f": [None, 1],
    }
    text = as_text(found)

    assert json.loads(text) == found
    assert '"a": [ 1, -2.5, 1e-09, 3e+20 ]' in text
    assert len(text.splitlines()) == 18


def test_without_matplotlib_the_numbers_are_written_and_the_lack_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    told = report().write(tmp_path)

    assert any("caspl-serve[bench]" in line for line in told)
    assert (tmp_path / "bench-engine.json").is_file()
    assert not (tmp_path / "bench-engine.png").exists()


def test_the_command_that_is_told_leaves_out_where_its_files_went(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["caspl", "bench", "swap", "--out", "/elsewhere/x", "--swaps", "5", "--page", "docs/p.md"]
    )

    assert Report("swap", {}).command == "caspl bench swap --swaps 5"
