"""docs/performance.md shows what is on file, and every ratio with its bar, missed ones too."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.summary import table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "docs" / "results").glob("bench-*.json"))
ELSEWHERE = {"bench-decode", "bench-decode-differences"}
"""Shown on a page of their own."""


def block(name):
    """What stands between a benchmark's marks."""
    return re.search(rf"<!-- {name}:start -->\n(.*?)<!-- {name}:end -->", PAGE, re.DOTALL)[1]


@pytest.mark.parametrize("path", [path for path in RESULTS if path.stem not in ELSEWHERE], ids=lambda path: path.stem)
def test_the_page_shows_the_numbers_on_file(path):
    filed = json.loads(path.read_text(encoding="utf-8"))
    shown = block(path.stem)

    assert f"`{filed['command']}`" in shown
    assert filed["date"] in shown
    assert f"](results/{path.name})" in PAGE
    for name, value in filed["ratios"].items():
        (row,) = (line for line in shown.splitlines() if line.startswith(f"| `{name}` |"))
        assert value is None or f"**{value:.3g}**" in row
        if name in filed["bars"]:
            assert ("**missed**" in row) is not filed["bars"][name]["is_met"]


def test_the_page_says_that_no_gpu_was_used_as_long_as_no_result_is_from_one():
    on_cuda = [path.name for path in RESULTS if "cuda" in json.loads(path.read_text(encoding="utf-8"))["hardware"]]

    assert ("No GPU could be used" in PAGE) is not bool(on_cuda)


def test_readme_shows_what_the_summary_says():
    assert table() in (ROOT / "README.md").read_text(encoding="utf-8")
