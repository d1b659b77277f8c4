"""Pages and generated tables agree with the results on file."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.paired import table
from benchmarks.report import Report, Table, markdown
from benchmarks.tables import fill_summary, read_results, summary, write_tables

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", read_results(RESULTS))
def test_every_table_on_file_is_generated_from_its_json_and_linked(name):
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))

    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == markdown(result) + "\n"
    assert f"results/{name}.md" in PAGE


def test_the_page_shows_the_summary_of_the_results_on_file():
    page = ROOT / "docs/performance.md"
    relative = RESULTS.relative_to(page.parent).as_posix()

    assert summary(RESULTS).replace("](RESULTS/", f"]({relative}/") in page.read_text(encoding="utf-8")


def test_the_comparison_shows_the_ratios_on_file():
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    numbers = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["numbers"]
    shown = re.findall(r"\d\.\d\d", page.split("## Measured")[1])

    assert sorted(shown) == sorted(f"{one['value']:.2f}" for name, one in numbers.items() if name.startswith("vs_"))


def test_a_summary_leaves_out_what_was_not_measured(tmp_path):
    report = Report("serve-idle", {})
    report.add("idle_overhead_ms", 1.25, "ms")
    report.write(tmp_path / "results")
    page = tmp_path / "page.md"
    page.write_text("<!-- performance-summary:start -->\n<!-- performance-summary:end -->\n")

    fill_summary(page, tmp_path / "results")

    rows = page.read_text().splitlines()[3:-1]
    assert len(rows) == 1
    assert "| 1.25 ms |" in rows[0]
    assert "](results/serve-idle.md)" in rows[0]


def test_tables_are_written_for_results_only(tmp_path):
    (tmp_path / "other.json").write_text('{"a": 1}')
    Report("engine", {}).write(tmp_path)

    assert write_tables(tmp_path) == [tmp_path / "engine.md"]


def test_the_page_says_that_no_gpu_was_used_as_long_as_no_result_is_from_one():
    on_gpu = [one for one in read_results(RESULTS).values() if "device" in one["hardware"]]

    assert ("All measurements are on CPU. The CUDA code has not been run on a GPU." in PAGE) is not bool(on_gpu)


def test_a_paired_comparison_shows_the_ratio_of_new_to_old():
    found = {"closed loop, images/s": {"old": [10.0, 20.0], "new": [11.0, 22.0]}}

    assert isinstance(table(found), Table)
    assert table(found).rows[0][4] == "**1.100**"
