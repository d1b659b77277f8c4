"""Random tokens before boosting tokens."""

import json
import re
from pathlib import Path

import pytest

from training.demo.crowding import crowding

ROOT = Path(__file__).parents[3]
BUNDLES = ROOT / "service" / "demo" / "bundles"


@pytest.mark.slow
def test_zero_tokens_equal_the_boosted_student_and_the_page_shows_the_results():
    found = crowding("negative", BUNDLES, [0, 2, 4])
    filed = json.loads((ROOT / "docs" / "results" / "demo-boost.json").read_text())["rows"]
    boosted = next(row["boosted"] for row in filed if row["domain"] == "negative")
    # Other processors round differently; half a point is ten of the two thousand pictures.
    assert found[0] == pytest.approx({"base": boosted["base"], "new": boosted["new"]}, abs=0.5)
    page = (ROOT / "docs" / "demo-world.md").read_text().replace("\n", " ")
    shown = re.search(r"([\d.]+) per cent without any, ([\d.]+) with two, ([\d.]+) with four", page)
    assert [float(number) for number in shown.groups()] == pytest.approx([found[n]["base"] for n in (0, 2, 4)], abs=0.5)
