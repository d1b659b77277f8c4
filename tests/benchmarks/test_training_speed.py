"""The benchmark compares like with like: both ways of training have the same loss curve."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.training_speed import Timing, markdown_table, measure
from tests.tiny import register_tiny_models

ROOT = Path(__file__).parents[2]


def test_the_transcription_and_the_project_learn_the_same():
    register_tiny_models()
    timings = measure(
        "tiny", "tiny-teacher", n_images=6, n_classes=3, epochs=2, methods=("coop", "ivlp"), console=Console(quiet=True)
    )
    assert [timing.name for timing in timings] == ["boost", "coop", "ivlp"]
    for timing in timings:
        assert timing.loss_difference < 1e-3
        epochs, ours_s = timing.recipe_epochs, timing.first_s + (timing.recipe_epochs - 1) * timing.later_s
        assert timing.ratio == pytest.approx(epochs * timing.reference_s / ours_s)


def test_the_command_writes_what_it_prints(tmp_path):
    command = [sys.executable, "-m", "benchmarks.training_speed", "--backbone", "demo-student"]
    command += ["--teacher", "demo-teacher", "--n-images", "4", "--n-classes", "3", "--epochs", "2"]
    command += ["--methods", "coop", "--out", str(tmp_path / "speed.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    runs = json.loads((tmp_path / "speed.json").read_text())["runs"]
    assert [run["name"] for run in runs] == ["boost", "coop"]
    assert f"{runs[0]['ratio']:.1f}" in done.stdout


def test_the_page_shows_the_numbers_on_file():
    filed = json.loads((ROOT / "docs" / "results" / "training-speed.json").read_text())["runs"]
    assert markdown_table([Timing(**run) for run in filed]) in (ROOT / "docs" / "performance.md").read_text()
