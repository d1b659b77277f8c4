"""Working sets larger than the bank: points, cold latencies, the chart, and the command with a real server."""

import itertools
import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmarks.bundles import domain_name
from benchmarks.cli import bench_app
from benchmarks.cliff import LOADS, Point, add_cold, add_points, cold_latencies
from benchmarks.cliff_chart import draw
from benchmarks.report import Report, markdown


def point(over, per_s, updates_per_s=0.0, alpha=0.0):
    return Point(over, alpha, updates_per_s, per_s, [10.0, 20.0, 30.0], [0.1, 0.1, 0.1])


def a_report():
    report = Report("cliff", {"slots": 8, "backbone": "tiny", "dtype": "float32", "clients": 2})
    points = [point(1, [100.0, 90.0, 110.0]), point(4, [50.0, 45.0, 55.0]), point(4, [1.0] * 3, updates_per_s=5.0)]
    add_points(report, points, 8)
    add_cold(report, {"resident": [[0.010, 0.012]] * 3, "cold": [[0.013, 0.015]] * 3, "loads": [[1.0]] * 3})
    return report


def test_throughput_is_compared_turn_by_turn_with_the_working_set_that_fits():
    numbers = a_report().numbers

    assert numbers["over_4x_zipf_0"]["value"] == pytest.approx(0.5)
    assert numbers["over_4x_zipf_0"]["met"] is False
    assert not any(name.startswith("over_1x") for name in numbers)


def test_a_cold_domain_adds_the_difference_of_the_medians():
    numbers = a_report().numbers

    assert numbers["cold_added_ms"]["value"] == pytest.approx(3.0)
    assert numbers["cold_loads_per_request"]["value"] == 1.0


class SlowServer:
    """A server with an LRU bank, whose closed loops end after `n_requests`."""

    def __init__(self, slots, n_requests):
        self._slots, self._n_requests, self._n_loads = slots, n_requests, 0
        self._bank = [domain_name(index) for index in range(slots)]

    def closed(self, n_clients, duration_s, *, domains, due_s=()):
        assert n_clients == 1
        served = list(itertools.islice(itertools.cycle(domains), len(due_s) or self._n_requests))
        for domain in served:
            self._n_loads += domain not in self._bank
            self._bank = [*(one for one in self._bank if one != domain), domain][-self._slots :]
        return [SimpleNamespace(is_good=True, latency_s=0.2)] * len(served)

    def metrics(self):
        return {LOADS: self._n_loads}


@pytest.mark.parametrize("n_requests", [1, 3, 20])
@pytest.mark.parametrize("slots", [1, 4])
def test_every_cold_request_loads_a_domain_however_few_fit_in_a_turn(slots, n_requests):
    found = cold_latencies(SlowServer(slots, n_requests), slots, 1.0)

    assert found["loads"] == [[1.0]] * 3
    assert [len(turn) for turn in found["cold"]] == [n_requests] * 3


def test_the_table_has_a_row_per_point_and_no_ratio_without_a_reference():
    rows = a_report().tables["Working set over slots"].rows

    assert [row[0] for row in rows] == ["1 x (8)", "4 x (32)", "4 x (32)"]
    assert [row[4] for row in rows] == ["1.00", "0.50", ""]


def test_the_chart_names_its_curves_and_both_axes_and_is_the_same_file_each_time(tmp_path):
    chart = draw(a_report(), tmp_path).read_text(encoding="utf-8")

    for text in ("uniform, 0 updates/s", "uniform, 5 updates/s", "images/s", "p99 latency, ms", "8 slots", "4 x"):
        assert text in chart
    assert draw(a_report(), tmp_path).read_text(encoding="utf-8") == chart


@pytest.mark.parametrize("option", ["--over", "--zipf", "--updates"])
def test_words_in_place_of_numbers_are_refused(option):
    done = CliRunner().invoke(bench_app, ["cliff", option, "1,many"])

    assert done.exit_code == 2
    assert "numbers" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cold_requests_miss_the_bank_each_time_and_updates_go_live(tmp_path):
    words = ["cliff", "--backbone", "demo-student", "--slots", "2", "--over", "1,4", "--zipf", "0", "--updates", "0,2"]
    words += ["--clients", "2", "--side", "64", "--seconds", "3", "--dtype", "float32", "--out", str(tmp_path)]

    done = CliRunner().invoke(bench_app, words)

    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "cliff.json").read_text())
    assert result["numbers"]["cold_loads_per_request"]["value"] == pytest.approx(1.0, abs=0.1)
    points = {(one["over"], one["updates_per_s"]): one for one in result["samples"]["points"]}
    assert sum(one["n_failed"] for one in points.values()) == 0
    assert max(points[1, 0.0]["loads_per_image"]) < 0.1 < min(points[4, 0.0]["loads_per_image"])
    assert points[1, 2.0]["n_updates"] > 0
    assert (tmp_path / "cliff.svg").is_file()
    assert (tmp_path / "cliff.md").read_text() == markdown(result) + "\n"
