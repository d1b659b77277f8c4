"""`caspl bench plan`: errors of predictions, and the whole command with a real server and a simulated device."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.cli import bench_app
from benchmarks.errors import BenchError
from benchmarks.plan import Case, PlanOptions, Point, add_point, compare, measure
from benchmarks.report import Report
from caspl.capacity.measurements import read_measurements
from caspl.capacity.queueing import simulate
from tests.caspl.capacity.times import server

TIMES = server({1: 0.05, 8: 0.2})
FIXED = Case("fixed", "simulated device")


def point(predicted, measured):
    return Point(0.6, 24.0, (100.0, predicted), (280.0, 320.0), (100.0, measured), 1500, 2, (2.0, 2.1))


@pytest.mark.parametrize(
    ("predicted", "measured", "shown", "is_met"),
    [
        (300.0, 250.0, "+20%", True),
        (200.0, 250.0, "-20%", True),
        (330.0, 250.0, "+32%", False),
        (150.0, 250.0, "-40%", False),
    ],
)
def test_an_error_counts_in_both_directions(predicted, measured, shown, is_met):
    report = Report("plan", {})

    row = add_point(report, FIXED, point(predicted, measured))

    assert report.numbers["p99_error_fixed_0.6"]["met"] is is_met
    assert row[4:6] == (f"{predicted:.0f} / {measured:.0f}", shown)
    assert row[-2:] == (1500, 2)


class IdealServer:
    """A server whose latencies are exactly those of the simulation."""

    def __init__(self):
        self.n_rows = self.n_batches = 0

    def open_at(self, due_s):
        found = simulate(TIMES, np.array(due_s))
        latencies_s = [0.0] * (len(due_s) - len(found.latencies_s)) + found.latencies_s.tolist()
        self.n_rows, self.n_batches = len(due_s), len(due_s) / found.rows_per_batch
        return [SimpleNamespace(is_good=True, latency_s=latency_s) for latency_s in latencies_s]

    def metrics(self):
        return {"caspl_batch_rows_sum": self.n_rows, "caspl_batch_rows_count": self.n_batches}


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_a_server_that_behaves_as_the_model_is_predicted_within_chance(load):
    found = compare(IdealServer(), TIMES, FIXED, load, 15_000)

    assert found.rate_per_s == pytest.approx(load * 40)
    assert found.predicted == pytest.approx(found.measured, rel=0.15)
    assert found.by_chance[0] < found.predicted[1] < found.by_chance[1]
    assert found.rows_per_batch[0] == pytest.approx(found.rows_per_batch[1], rel=0.05)


@pytest.mark.parametrize(("only", "reason"), [("model,cluster", "unknown parts: cluster")])
def test_an_unknown_part_is_refused_before_anything_starts(only, reason, tmp_path):
    with pytest.raises(BenchError, match=reason):
        measure(PlanOptions(only=tuple(only.split(","))), tmp_path, Console(quiet=True))


@pytest.mark.slow
def test_the_command_measures_predicts_and_compares_on_a_real_server(tmp_path):
    words = ["plan", "--only", "fixed", "--loads", "0.5", "--requests", "60", "--out", str(tmp_path), "--json", "-q"]
    done = CliRunner().invoke(bench_app, words)

    assert done.exit_code == 0, done.output
    times = read_measurements(tmp_path / "plan-fixed.measured.json")
    assert times.batch_s(8) >= 0.2
    assert times.batch_s(1) >= 0.06
    assert (times.max_rows, times.n_pipelined, times.shares_cores) == (8, 1, False)
    result = json.loads((tmp_path / "plan.json").read_text())
    (found,) = result["samples"]["points"]
    assert found["n_failed"] == 0
    assert found["measured"][1] >= found["measured"][0] >= 60
    assert "p99_error_fixed_0.5" in result["numbers"]
