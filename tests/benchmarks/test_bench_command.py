"""`caspl bench`: output, expected errors, and what it imports."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import benchmarks.serve
from benchmarks.cli import bench_app
from benchmarks.errors import BenchError
from benchmarks.report import Report
from benchmarks.serve import PARTS


def invoke(*words):
    return CliRunner().invoke(bench_app, list(words))


@pytest.fixture
def measured(monkeypatch):
    """`caspl bench serve` without the measurement."""

    def measure(options, console):
        console.print("working")
        report = Report("serve", {"n_domains": options.n_domains})
        report.add("idle_latency_ms", 2.0, "ms")
        return report

    monkeypatch.setattr(benchmarks.serve, "measure", measure)


def test_json_is_one_object_on_standard_output_and_nothing_else(measured, tmp_path):
    done = invoke("serve", "--json", "--domains", "7", "--out", str(tmp_path))

    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert result["numbers"]["idle_latency_ms"]["value"] == 2.0
    assert result["settings"] == {"n_domains": 7}
    assert json.loads((tmp_path / "serve.json").read_text()) == result
    assert "working" in done.stderr


def test_without_json_the_table_is_printed(measured, tmp_path):
    done = invoke("serve", "--out", str(tmp_path))

    assert "idle_latency_ms" in done.stdout
    assert "wrote" in done.stderr


@pytest.mark.parametrize("name", ["engine", "serve", "cliff"])
def test_the_backend_and_int8_reach_the_measured_model(name, monkeypatch, tmp_path):
    given = []

    def measure(options, _):
        given.append((options.backend, options.dtype))
        raise BenchError("measured enough")

    monkeypatch.setattr(f"benchmarks.{name}.measure", measure)

    assert invoke(name, "--backend", "openvino", "--dtype", "int8", "--out", str(tmp_path)).exit_code == 1
    assert given == [("openvino", "int8")]


def test_an_expected_error_is_one_line_and_a_status(monkeypatch, tmp_path):
    def measure(*_):
        raise BenchError("Real photographs come with scikit-image.")

    monkeypatch.setattr(benchmarks.serve, "measure", measure)

    done = invoke("serve", "--out", str(tmp_path))

    assert done.exit_code == 1
    assert done.stderr.strip() == "error: Real photographs come with scikit-image."


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "benchmarks.serve", None)

    done = invoke("serve", "--out", str(tmp_path))

    assert done.exit_code == 1
    assert "is not installed: pip install" in done.stderr


def test_an_unknown_backbone_is_one_line_too(tmp_path):
    done = invoke("engine", "--backbone", "ViT-X-99", "--out", str(tmp_path))

    assert done.exit_code == 1
    assert "error: Unknown backbone 'ViT-X-99'" in done.stderr


def test_an_unknown_peer_is_refused(tmp_path):
    done = invoke("peers", "--peers", "nobody", "--out", str(tmp_path))

    assert done.exit_code == 1
    assert "choose from fastapi, litserve, litserve-ours, ray" in " ".join(done.stderr.split())


def test_a_setting_without_a_value_is_refused():
    done = invoke("serve", "--set", "preprocess")

    assert done.exit_code == 2
    assert "NAME=VALUE" in done.stderr


@pytest.mark.parametrize("module", ["benchmarks.cli", "benchmarks.load"])
def test_neither_the_command_line_nor_the_load_generator_imports_torch(module):
    code = f"import {module}, sys; sys.exit(bool({{'torch', 'open_clip', 'fastapi'}} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_help_names_every_part():
    shown = " ".join(invoke("serve", "--help").output.replace("│", " ").split())

    assert f"parts, separated by commas: {', '.join(PARTS)}" in shown
