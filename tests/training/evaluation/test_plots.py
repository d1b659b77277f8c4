"""Plots can be opened, have a plausible size, and are not blank."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from prompt_store.bundle import read_bundle
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone
from tests.training.evaluation.tiny_sets import CLASS_NAMES, painted
from training.evaluation.bench import Bench
from training.evaluation.metrics import Spread
from training.evaluation.plan import Plan, run_plan
from training.evaluation.predict import Predictor
from training.evaluation.rows import Results

plots = pytest.importorskip("training.evaluation.plots", reason="needs matplotlib", exc_type=ModuleNotFoundError)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A function from protocol to its report on four classes, plain and boosted, and where its results are."""
    folder = tmp_path_factory.mktemp("plots")
    dataset = painted(folder / "four")
    results, console = Results(folder / "results"), Console(file=io.StringIO())
    boost = read_bundle(random_bundle("four", CLASS_NAMES, image_boost=(2, 2), text_boost=(2, 2)))
    predictor = Predictor(tiny_backbone())
    benches = [Bench(predictor, results, console), Bench(predictor, results, console, boost)]

    def run(protocol, *methods, **fields):
        overrides = ("epochs=1", "warmup_epochs=0") if methods else ()
        plan = Plan(protocol, (dataset,), methods, overrides=overrides, **fields)
        return run_plan(plan, [benches]), results

    return run


def shades(path):
    """Size of a picture, and how many colours it has."""
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size, len(image.convert("RGB").getcolors(maxcolors=1 << 24))


def test_a_report_has_its_bars_confusions_features_and_losses(measured, tmp_path):
    report, results = measured("base-to-new", "coop", seeds=(1,), shots=(2,))
    paths = plots.draw_report(report, results, tmp_path)
    assert sorted(path.name for path in paths) == [
        "four-accuracy.png",
        "four-coop-confusion.png",
        "four-features.png",
        "four-losses.png",
        "four-zero-shot-confusion.png",
    ]
    for path in paths:
        (width, height), n_colours = shades(path)
        assert 300 <= width <= 3000
        assert 200 <= height <= 1500
        assert n_colours > 10


def test_zero_shot_has_no_losses(measured, tmp_path):
    report, results = measured("base-to-new")
    assert not [path for path in plots.draw_report(report, results, tmp_path) if "losses" in path.name]


def test_several_numbers_of_shots_are_drawn_as_curves(measured, tmp_path):
    report, results = measured("few-shot", "coop", seeds=(1, 2), shots=(1, 2))
    (path,) = (path for path in plots.draw_report(report, results, tmp_path) if "accuracy" in path.name)
    assert shades(path)[1] > 10


def test_a_class_name_with_a_dollar_sign_is_text(tmp_path):
    counts = np.array([[3, 1], [0, 4]])
    assert shades(plots.draw_confusion(counts, ["$5 note", "x^$ and $y_2"], "notes", tmp_path / "c.png"))[1] > 10


def test_heat_maps_leave_cells_without_a_number_empty(tmp_path):
    table = np.array([[50.0, np.nan], [60.0, 70.0]])
    path = plots.draw_heat_maps(
        [("frozen", table), ("learnable", table - 1)], (4, 8), ("rows", "columns"), tmp_path / "h.png"
    )
    (width, height), n_colours = shades(path)
    assert width > height > 200
    assert n_colours > 10


def test_budgets_are_bars_even_if_one_is_missing(tmp_path):
    path = plots.draw_budgets((8, 16), [Spread(40.0, None, 1), None], [Spread(50.0, 1.0, 3)] * 2, tmp_path / "b.png")
    assert shades(path)[1] > 10
