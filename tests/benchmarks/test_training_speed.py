"""The training benchmark compares equal work: both ways have the same losses."""

import pytest
from rich.console import Console

from benchmarks.training_speed import TrainOptions, measure, time_all
from tests.tiny import register_tiny_models

OPTIONS = TrainOptions("tiny", "tiny-teacher", n_images=6, n_classes=3, epochs=2, methods=("coop", "ivlp"), threads=1)


def test_the_transcription_and_the_project_learn_the_same(monkeypatch):
    register_tiny_models()
    timings = time_all(OPTIONS, Console(quiet=True))

    assert [timing.name for timing in timings] == ["boost", "coop", "ivlp"]
    for timing in timings:
        assert timing.loss_difference < 1e-3
        epochs, ours_s = timing.recipe_epochs, timing.first_s + (timing.recipe_epochs - 1) * timing.later_s
        assert timing.ratio == pytest.approx(epochs * timing.reference_s / ours_s)
    monkeypatch.setattr("benchmarks.training_speed.time_all", lambda *_: timings)
    assert list(measure(OPTIONS, Console(quiet=True)).numbers) == ["boost_speedup", "coop_speedup", "ivlp_speedup"]
