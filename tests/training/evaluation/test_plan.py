import io

import pytest
from rich.console import Console

from tests.tiny import tiny_backbone
from tests.training.evaluation.tiny_sets import painted
from training.errors import DatasetError, RecipeError
from training.evaluation.bench import Bench
from training.evaluation.plan import Plan, run_plan
from training.evaluation.predict import Predictor
from training.evaluation.rows import Results

SETTINGS = ("epochs=1", "warmup_epochs=0", "batch_size=8")


@pytest.fixture
def bench(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    return Bench(Predictor(tiny_backbone()), Results(tmp_path / "results"), console)


@pytest.fixture
def two_sets(tmp_path):
    first = painted(tmp_path / "first", name="first", class_names=("grid", "woven"))
    return first, painted(tmp_path / "second", name="second", class_names=("woven",), train=0)


def test_every_method_number_of_shots_and_seed_has_its_row(bench, two_sets):
    plan = Plan("few-shot", two_sets[:1], ("coop", "ivlp"), seeds=(1, 2), shots=(1, 2), overrides=SETTINGS)
    report = run_plan(plan, [[bench]])
    found = [(row.method, row.shots, row.seed) for row in report.rows]
    assert found == [("zero-shot", 0, None)] + [
        (method, shots, seed) for method in ("coop", "ivlp") for shots in (1, 2) for seed in (1, 2)
    ]
    assert len(list((bench.results.folder / "bundles").iterdir())) == 8
    assert report.backbone["fingerprint"] == tiny_backbone().fingerprint
    assert "9/9  few-shot, first: ivlp, 2 shots, seed 2" in bench.console.file.getvalue()


def test_variants_are_tested_with_prompts_of_the_first_data_set(bench, two_sets):
    report = run_plan(Plan("domain-generalisation", two_sets, ("coop",), (1,), overrides=SETTINGS), [[bench]])
    assert [(row.target, row.method) for row in report.rows] == [
        ("first", "zero-shot"),
        ("first", "coop"),
        ("second", "zero-shot"),
        ("second", "coop"),
    ]
    assert len(list((bench.results.folder / "bundles").iterdir())) == 1


def test_an_invalid_plan_is_rejected_before_training(two_sets, tmp_path):
    first, second = two_sets
    strange = painted(tmp_path / "strange", name="strange", class_names=("snow",), train=0)
    untested = painted(tmp_path / "untested", name="untested", test=0)
    for protocol, datasets, error in (
        ("base-to-new", (first, first), "without duplicates"),
        ("base-to-new", (second,), "has no train images"),
        ("few-shot", (untested,), "has no test images"),
        ("domain-generalisation", (first, strange), "'snow'"),
    ):
        with pytest.raises(DatasetError, match=error):
            Plan(protocol, datasets, ("coop",))
    with pytest.raises(RecipeError, match="epochs"):
        Plan("base-to-new", (first,), ("coop",), overrides=("epochs=0",))


def test_the_base_model_requires_no_train_images(bench, two_sets):
    (row,) = run_plan(Plan("few-shot", two_sets[1:], ()), [[bench]]).rows
    assert (row.method, row.accuracy) == ("zero-shot", 100.0)
