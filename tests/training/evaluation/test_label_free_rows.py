"""Rows of label-free methods: they learn from all train images, and each half is classified among its own classes."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from prompt_store.bundle import read_bundle
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone
from tests.training.evaluation.tiny_sets import CLASS_NAMES, painted
from training.data.dataset import LabelledImage
from training.data.few_shot import base_and_new
from training.evaluation.bench import Bench, Trial
from training.evaluation.plan import Plan
from training.evaluation.predict import Predictor
from training.evaluation.protocols import across, all_classes, base_to_new
from training.evaluation.rows import Results
from training.label_free.methods import LABEL_FREE
from training.recipe import read_recipe

QUICK = {"epochs": 2, "batch_size": 4, "warmup_epochs": 0, "images_per_class": 2, "text_steps": 3, "templates": 2}
QUICK |= {"iterations": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return painted(tmp_path_factory.mktemp("four"), train=5)


@pytest.fixture
def bench_at(tmp_path):
    boost = read_bundle(random_bundle("four", CLASS_NAMES, image_boost=(2, 2), text_boost=(2, 2)))

    def build(*, is_boosted=False, folder="results"):
        console = Console(file=io.StringIO(), width=200)
        return Bench(Predictor(tiny_backbone()), Results(tmp_path / folder), console, boost if is_boosted else None)

    return build


def trial_of(name, seed=1):
    kind = LABEL_FREE[name].recipe
    values = [f"{key}={value}" for key, value in QUICK.items() if key in kind.model_fields]
    return Trial.of(name, read_recipe(kind, None, values), shots=16, seed=seed)


def with_rotated_labels(dataset):
    train = tuple(LabelledImage(image.path, (image.label + 1) % 4) for image in dataset.split("train"))
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": train})


@pytest.mark.parametrize("is_boosted", [False, True])
@pytest.mark.parametrize("name", LABEL_FREE)
def test_each_half_is_classified_among_its_own_classes_with_the_bundles_logits(bench_at, dataset, name, is_boosted):
    bench = bench_at(is_boosted=is_boosted)
    row = base_to_new(bench, dataset, trial_of(name))
    bundle = read_bundle((bench.results.training_folder(row.training) / "bundle.safetensors").read_bytes())
    predictor = Predictor(tiny_backbone())
    model, stack = predictor.model, predictor.model.load_stack(bundle)
    expected = []
    for half, classes in zip(base_and_new(dataset), ([0, 1], [2, 3]), strict=True):
        items = half.split("test")
        pixels = predictor._views_of(items).load(range(len(items)), 0)
        logits = model.logits(model.encode_images(pixels, [stack] * len(items)), stack).numpy()[:, classes]
        expected.append(100 * float(np.mean(logits.argmax(1) == [item.label for item in items])))
    assert (row.base, row.new) == tuple(expected)
    assert row.shots == 0
    assert bundle.manifest.provenance.metrics["n_images"] == 20
    assert tuple(spec.name for spec in bundle.manifest.classes) == CLASS_NAMES


@pytest.mark.parametrize("name", LABEL_FREE)
def test_train_labels_have_no_effect_on_a_row(bench_at, dataset, name):
    one = base_to_new(bench_at(), dataset, trial_of(name))
    two = base_to_new(bench_at(folder="rotated"), with_rotated_labels(dataset), trial_of(name))
    assert (one.base, one.new, one.h) == (two.base, two.new, two.h)


@pytest.mark.parametrize("name", LABEL_FREE)
def test_a_row_is_made_once_and_found_again(bench_at, dataset, name):
    row = all_classes(bench_at(), dataset, trial_of(name))
    assert all_classes(bench_at(), dataset, trial_of(name)) == row
    assert row.accuracy is not None


@pytest.mark.parametrize("name", LABEL_FREE)
def test_other_data_sets_are_classified_by_their_own_names(bench_at, dataset, tmp_path, name):
    target = painted(tmp_path / "more", name="more", class_names=("smooth", "rough"))
    row = across(bench_at(), dataset, target, trial_of(name))
    assert row.accuracy is not None or row.note


def test_a_plan_runs_a_label_free_method_once_per_seed_and_a_deterministic_one_once(dataset):
    methods = tuple(LABEL_FREE)
    trials = Plan("few-shot", (dataset,), methods, seeds=(1, 2), shots=(1, 2)).trials(dataset)
    for name in methods:
        own = [trial for trial in trials if trial.method == name]
        assert [trial.seed for trial in own] == ([1, 2] if "seed" in LABEL_FREE[name].recipe.model_fields else [None])
        assert {trial.shots for trial in own} == {0}
