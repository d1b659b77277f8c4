"""`caspl bench fit`: times of fits, and of reports after a change of labels."""

import json

import numpy as np
from typer.testing import CliRunner

from benchmarks.cli import bench_app
from benchmarks.fit_time import difference, random_job, with_label
from service.examples.fit_process import compute


def test_the_result_has_both_times_and_the_difference_of_every_size(tmp_path):
    command = ["fit", "--examples", "24,48", "--classes", "3", "--width", "8", "--rounds", "3", "--quiet"]
    result = CliRunner().invoke(bench_app, [*command, "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "fit.json").read_text())["numbers"]
    kinds = ("fit", "_s"), ("fit", "_cpu_s"), ("relabel", "_s"), ("relabel", "_cpu_s"), ("difference", "")
    assert list(numbers) == [f"{name}_{n}{unit}" for n in (24, 48) for name, unit in kinds]
    assert all(numbers[f"difference_{n}"]["met"] for n in (24, 48))
    assert numbers["relabel_24_s"]["n"] == 3


def test_only_the_label_changes_and_the_difference_is_that_of_the_results():
    job = random_job(40, 4, 8)
    changed = with_label(job, 1, 3)
    assert (changed.labels_N != job.labels_N).sum() == 1
    np.testing.assert_array_equal(changed.features_NE, job.features_NE)
    assert difference(compute(job), compute(job)) == 0
    assert difference(compute(changed), compute(job)) > 1e-6
