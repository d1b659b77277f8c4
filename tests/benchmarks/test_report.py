"""A result is one JSON object, and its Markdown is generated from it."""

import json
import math
import sys

import numpy as np
import pytest

from benchmarks.ratios import Spread
from benchmarks.report import Report, Table, Target, markdown


def report():
    made = Report("engine", {"threads": 2})
    made.add("good", Spread.of([0.96, 0.97, 0.98]), "one / other", Target(">=", 0.95))
    made.add("bad", 0.2, "more", Target("<=", 0.1))
    made.add("free", np.float64(3.0), "no target")
    made.tables["Rates"] = Table(("alternative", "per s"), [("single", 1), ("mixed", 2)])
    made.samples = {"rates": {1: [np.float32(0.5), math.nan]}}
    return made


def test_the_object_holds_the_numbers_and_the_facts_about_them():
    result = json.loads(json.dumps(report().as_object(), allow_nan=False))

    assert {name: one["value"] for name, one in result["numbers"].items()} == {"good": 0.97, "bad": 0.2, "free": 3.0}
    assert (result["numbers"]["good"]["n"], result["numbers"]["bad"]["met"]) == (3, False)
    assert result["samples"] == {"rates": {"1": [0.5, None]}}
    assert set(result) >= {"date", "commit", "hardware", "versions", "command", "settings", "notes", "tables"}


def test_a_missed_target_is_as_visible_as_a_met_one():
    text = markdown(report().as_object())

    assert "| >= 0.95 | met |" in text
    assert "| <= 0.1 | **missed** |" in text
    assert "| single | 1 |" in text


@pytest.mark.parametrize(
    ("sense", "value", "is_met"), [(">=", 1.0, True), (">=", 0.9, False), ("<=", 1.0, True), ("<=", 1.1, False)]
)
def test_a_target_is_met_at_its_limit(sense, value, is_met):
    assert Target(sense, 1.0).is_met(value) is is_met


def test_not_a_number_meets_no_target():
    assert not Target("<=", 1.0).is_met(math.nan)


def test_the_markdown_can_be_generated_again_from_the_json(tmp_path):
    report().write(tmp_path)

    result = json.loads((tmp_path / "engine.json").read_text())
    assert (tmp_path / "engine.md").read_text() == markdown(result) + "\n"


def test_the_command_leaves_out_its_output_folder(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["caspl", "bench", "serve", "--out", "/elsewhere/x", "--only", "idle"])

    assert report().as_object()["command"] == "caspl bench serve --only idle"
