"""The boosting table: computation, and the table in docs/demo-world.md."""

import json
from pathlib import Path

from training.demo.boost_domains import markdown_table

ROOT = Path(__file__).parents[3]


def row(**changes):
    student = {"every": 10.0, "held_out": 9.0, "base": 20.0, "new": 30.0, "h": 24.0}
    teacher = {"every": 50.0, "held_out": 45.0, "base": 60.0, "new": 70.0, "h": 64.6}
    boosted = {"every": 30.0, "held_out": 25.0, "base": 40.0, "new": 60.0, "h": 48.0}
    values = {"domain": "fog", "student": student, "teacher": teacher, "boosted": boosted}
    return values | {"gap_closed": {"base": 50.0, "new": 75.0}} | changes


def test_the_table_shows_base_new_and_h_per_model_and_the_gap_closed():
    line = markdown_table([row()]).splitlines()[-1]
    assert line == "| fog | 20.0 / 30.0 / 24.0 | 60.0 / 70.0 / 64.6 | **40.0 / 60.0 / 48.0** | 50 % / 75 % |"


def test_without_a_gap_no_share_is_shown():
    assert markdown_table([row(gap_closed={"base": None, "new": -8.0})]).endswith("| no gap / -8 % |")


def test_the_page_shows_the_saved_numbers():
    rows = json.loads((ROOT / "docs" / "results" / "demo-boost.json").read_text())["rows"]
    assert markdown_table(rows) in (ROOT / "docs" / "demo-world.md").read_text()
