"""Pages and generated tables agree with the results on file."""

import json
from pathlib import Path

import pytest

from benchmarks.paired import table
from benchmarks.report import Report, Table, markdown
from benchmarks.tables import (
    CLIFF,
    PROOFS,
    cliff_table,
    fill_tables,
    peer_tables,
    read_results,
    reliability_table,
    summary,
    write_tables,
)

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", read_results(RESULTS))
def test_every_table_on_file_is_generated_from_its_json_and_linked(name):
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))

    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == markdown(result) + "\n"
    assert f"results/{name}.md" in (RELIABILITY if name in PROOFS else PAGE)


GENERATED = [
    ("docs/performance.md", summary),
    ("docs/performance.md", peer_tables),
    ("docs/comparison.md", lambda folder: peer_tables(folder, ["peers"])),
    ("docs/reliability.md", reliability_table),
    ("README.md", lambda folder: peer_tables(folder, ["peers"])),
]


@pytest.mark.parametrize(
    ("name", "table"), GENERATED, ids=["summary", "peers on all machines", "comparison", "reliability", "readme"]
)
def test_a_page_shows_the_tables_of_the_results_on_file(name, table):
    page = ROOT / name
    relative = RESULTS.relative_to(page.parent).as_posix()

    assert table(RESULTS).replace("](RESULTS/", f"]({relative}/") in page.read_text(encoding="utf-8")


def peer_row(**changes):
    about = {"peer": "litserve", "package": "litserve 1", "dtype": "float32", "date": "2026-01-02", "commit": "abcdef0"}
    return about | {"note": "batches", "per_s": [5.0, 6.0], "ours_per_s": [10.0, 12.0]} | changes


def test_peers_have_one_table_per_machine_and_a_column_per_dtype(tmp_path):
    for name in ("peers", "peers-amx"):
        report = Report(name, {})
        report.add("vs_litserve_float32", 2.0, "ratio")
        report.samples["rows"] = {
            "litserve, float32": peer_row(),
            "litserve, int8, against int8 backend=openvino": peer_row(dtype="int8", failed="no"),
        }
        report.write(tmp_path)

    text = peer_tables(tmp_path)

    assert text.count("| server | setup | float32 | int8 |") == 2
    assert "| litserve 1 | batches | **2** (2 .. 2): 11 / 5.50 |  |" in text
    assert "| litserve 1, against ours in int8 backend=openvino | batches |  | does not run |" in text
    assert "[2026-01-02, abcdef0](RESULTS/peers-amx.md)" in text


@pytest.mark.parametrize(("per_s", "is_older"), [([5.0, 6.0], False), (5.0, True)])
def test_rates_of_the_method_without_turns_are_marked(per_s, is_older, tmp_path):
    report = Report("peers", {})
    report.samples["rows"] = {"litserve, float32": peer_row(per_s=per_s), "ray, float32": peer_row(failed="no")}
    report.write(tmp_path)

    assert ("older method" in peer_tables(tmp_path)) is is_older


def test_a_page_without_marks_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n")

    with pytest.raises(ValueError, match="none of the marks <!-- performance-summary:start -->, <!-- peers:start -->"):
        fill_tables(page, tmp_path)


def test_a_summary_leaves_out_what_was_not_measured(tmp_path):
    report = Report("serve-idle", {})
    report.add("idle_overhead_ms", 1.25, "ms")
    report.write(tmp_path / "results")
    page = tmp_path / "page.md"
    page.write_text("<!-- performance-summary:start -->\n<!-- performance-summary:end -->\n")

    fill_tables(page, tmp_path / "results")

    rows = [line for line in page.read_text().splitlines() if line.startswith("|")][2:]
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


@pytest.mark.parametrize("name", ["cliff", "http", "serve"])
def test_a_command_without_a_result_is_listed_as_not_measured(name):
    section = PAGE.partition("## Not measured")[2]

    assert (f"`caspl bench {name}`" in section) is (name not in read_results(RESULTS))


def test_a_paired_comparison_shows_the_ratio_of_new_to_old():
    found = {"closed loop, images/s": {"old": [10.0, 20.0], "new": [11.0, 22.0]}}

    assert isinstance(table(found), Table)
    assert table(found).rows[0][4] == "**1.100**"


@pytest.mark.parametrize(
    ("loads", "text"),
    [
        (1.0, "to a domain outside the prompt bank: 13.0 ms, 3.0 ms more than to one inside it (10.0 ms)."),
        (0.2, "The latency of a cold domain is not known: in this run 20% of the requests missed the bank."),
    ],
)
def test_the_latency_of_a_cold_domain_is_shown_only_if_the_requests_missed_the_bank(loads, text, tmp_path):
    report = Report("cliff", {})
    for name, value in (("resident_latency", 10.0), ("cold_latency", 13.0), ("cold_added", 3.0)):
        report.add(f"{name}_ms", value, "ms")
    report.add("cold_loads_per_request", loads, "loads")
    headings = [*CLIFF, "failed"]
    report.tables["Working set over slots"] = Table(headings, [["2 x (32)", *range(len(headings) - 1)]])
    report.write(tmp_path)

    table = cliff_table(tmp_path)

    assert text in table
    assert "| 2 x (32) | 0 | 1 | 2 | 3 | 4 |\n" in table + "\n"
    assert "failed" not in table
