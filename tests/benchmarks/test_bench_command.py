"""`caspl bench`: what it prints, what it says when something is missing, and what it loads."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import benchmarks.swap
from benchmarks.cli import bench_app
from benchmarks.errors import BenchError
from benchmarks.interleaved import Ratio
from benchmarks.report import Measured, Report
from benchmarks.stage import PARTS


def invoke(*words):
    return CliRunner().invoke(bench_app, list(words))


@pytest.fixture
def measured(monkeypatch):
    """`caspl bench swap` without the measurement."""

    def measure(options, console):
        console.print("working")
        report = Report("swap", {"n_swaps": options.n_swaps})
        report.numbers = [Measured("memory_growth", Ratio.of([0.001]), "growth")]
        return report

    monkeypatch.setattr(benchmarks.swap, "measure", measure)


def test_json_is_one_object_on_standard_output_and_nothing_else(measured, tmp_path):
    done = invoke("swap", "--json", "--swaps", "7", "--out", str(tmp_path))

    assert done.exit_code == 0
    whole = json.loads(done.stdout)
    assert whole["ratios"] == {"memory_growth": 0.001}
    assert whole["settings"] == {"n_swaps": 7}
    assert json.loads((tmp_path / "bench-swap.json").read_text()) == whole
    assert "working" in done.stderr


def test_without_json_the_table_is_printed(measured, tmp_path):
    done = invoke("swap", "--out", str(tmp_path))

    assert "memory_growth" in done.stdout
    assert "wrote" in done.stderr


def test_what_a_person_can_mend_is_one_line_and_a_status(monkeypatch, tmp_path):
    def measure(*_):
        raise BenchError("Real photographs come with scikit-image.")

    monkeypatch.setattr(benchmarks.swap, "measure", measure)

    done = invoke("swap", "--out", str(tmp_path))

    assert done.exit_code == 1
    assert done.stderr.strip() == "error: Real photographs come with scikit-image."


def test_a_package_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "benchmarks.swap", None)

    done = invoke("swap", "--out", str(tmp_path))

    assert done.exit_code == 1
    assert 'not installed: pip install "caspl-serve[bench]"' in done.stderr


def test_an_unknown_backbone_is_one_line_too(tmp_path):
    done = invoke("swap", "--backbone", "ViT-X-99", "--out", str(tmp_path))

    assert done.exit_code == 1
    assert "error: Unknown backbone 'ViT-X-99'" in done.stderr


def test_rates_that_are_no_numbers_are_refused():
    done = invoke("serve", "--rates", "ten")

    assert done.exit_code == 2
    assert "numbers separated by commas" in done.stderr


def test_a_service_of_somebody_else_is_not_swapped_about(tmp_path):
    done = invoke("serve", "--url", "http://127.0.0.1:9", "--swap-storm", "10", "--out", str(tmp_path))

    assert done.exit_code == 1
    assert "for a service of the benchmark's own" in " ".join(done.stderr.split())


def test_an_unknown_peer_is_refused(tmp_path):
    done = invoke("peers", "--peers", "nobody", "--out", str(tmp_path))

    assert done.exit_code == 1
    assert "Unknown peers nobody; known are open_clip, fastapi, litserve, ray, infinity." in " ".join(
        done.stderr.split()
    )


@pytest.mark.parametrize("module", ["benchmarks.cli", "benchmarks.load"])
def test_neither_the_command_line_nor_the_load_generator_loads_torch(module):
    code = f"import {module}, sys; sys.exit(bool({{'torch', 'open_clip', 'fastapi'}} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_setting_without_a_value_is_a_mistake_of_the_caller():
    done = invoke("serve", "--set", "preprocess")

    assert done.exit_code == 2
    assert "NAME=VALUE" in done.stderr


def test_the_help_names_every_part():
    shown = " ".join(invoke("serve", "--help").output.replace("│", " ").split())

    assert f"parts, separated by commas: {', '.join(PARTS)}" in shown


def test_a_part_that_does_not_exist_is_refused_before_anything_starts():
    done = invoke("serve", "--only", "idle,strom")

    assert done.exit_code != 0
    assert "no part strom; there are start, idle, engine, pipeline, sweep, storm, overload" in " ".join(
        done.output.split()
    )
