"""Rows against predictions of their bundles; a second run reuses finished work."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console

from prompt_store.bundle import read_bundle
from prompted_clip.few_shot import FEW_SHOT_METHODS
from prompted_clip.model import PromptedClip
from prompted_clip.preprocess import normalize_pixels
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone
from tests.training.data.tiny_images import pixels_of
from tests.training.evaluation.tiny_sets import CLASS_NAMES, files_below, painted
from training.adapting.methods import METHODS
from training.checkpoint import save_checkpoint
from training.data.few_shot import base_and_new, few_shot
from training.errors import CheckpointError, DatasetError
from training.evaluation.bench import Bench, ShotSampler, Trial
from training.evaluation.metrics import harmonic_mean
from training.evaluation.predict import Predictor
from training.evaluation.protocols import across, all_classes, base_to_new, to_variant
from training.evaluation.rows import Results
from training.recipe import FewShotRecipe, read_recipe

SETTINGS = ("epochs=2", "batch_size=2", "warmup_epochs=0", "learning_rate=0.05")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return painted(tmp_path_factory.mktemp("four"))


@pytest.fixture
def bench_at(tmp_path):
    """A bench on the tiny backbone, plain or boosted; results go below the test's folder."""
    boost = read_bundle(random_bundle("four", CLASS_NAMES, image_boost=(2, 2), text_boost=(2, 2)))

    def build(*, is_boosted=False, checkpoint_every=100):
        console = Console(file=io.StringIO(), width=200)
        return Bench(
            Predictor(tiny_backbone()),
            Results(tmp_path / "results"),
            console,
            boost if is_boosted else None,
            checkpoint_every=checkpoint_every,
        )

    return build


def trial_of(method, *settings, shots=2, seed=1):
    return Trial.of(method, read_recipe(METHODS[method].recipe, None, [*SETTINGS, *settings]), shots=shots, seed=seed)


def bundle_path(bench, row):
    return bench.results.training_folder(row.training) / "bundle.safetensors"


def rate_of(bundle, dataset):
    """Accuracy in per cent of a bundle among a data set's classes, by another way than the package's."""
    model = PromptedClip(tiny_backbone())
    stack = model.load_stack(bundle)
    if dataset.class_names != stack.class_names:
        stack = model.with_labels(stack, dataset.class_names)
    answers = Predictor(tiny_backbone()).predict(stack, dataset)
    scores = answers.features_NE @ stack.text_features.numpy().T
    return 100 * float(np.mean(scores.argmax(1) == [item.label for item in dataset.split("test")]))


@pytest.mark.parametrize("method", ["coop", "ivlp"])
@pytest.mark.parametrize("is_boosted", [False, True])
def test_base_to_new_reports_the_accuracy_of_its_bundle_on_each_half(bench_at, dataset, method, is_boosted):
    bench = bench_at(is_boosted=is_boosted)
    row = base_to_new(bench, dataset, trial_of(method))
    bundle = read_bundle(bundle_path(bench, row).read_bytes())
    base, new = base_and_new(dataset)
    assert [each.name for each in bundle.manifest.classes] == list(base.class_names)
    assert (row.base, row.new) == (rate_of(bundle, base), rate_of(bundle, new))
    assert row.h == harmonic_mean(row.base, row.new)
    assert (row.boosted, row.seed, row.shots, row.n_images) == (is_boosted, 1, 2, 8)


def test_shots_are_sampled_before_the_classes_are_split(bench_at, dataset):
    bench = bench_at()
    row = base_to_new(bench, dataset, trial_of("coop", seed=3))
    bundle = read_bundle(bundle_path(bench, row).read_bytes())
    drawn, _ = base_and_new(few_shot(dataset, 2, seed=3))
    assert bundle.manifest.provenance.data_digests["train"] == drawn.digest
    assert bundle.manifest.provenance.seed == 3


@pytest.mark.parametrize("is_boosted", [False, True])
def test_zero_shot_is_the_base_model_with_its_own_text(bench_at, dataset, is_boosted):
    bench = bench_at(is_boosted=is_boosted)
    row = base_to_new(bench, dataset, Trial())
    base_model, preprocess = bench.base_model, bench.base_model.backbone.preprocess
    for half, rate in zip(base_and_new(dataset), (row.base, row.new), strict=True):
        pixels = pixels_of([item.path for item in half.split("test")], preprocess)
        texts = base_model.zero_shot_text(half.class_names, ["{}."] if is_boosted else [dataset.template])
        named = (base_model.encode_images(normalize_pixels(pixels, preprocess)) @ texts.T).argmax(1)
        assert rate == 100 * float(np.mean(named.numpy() == [item.label for item in half.split("test")]))
    assert (row.seed, row.shots, row.training) == (None, 0, None)


def test_prompts_for_their_own_classes_only_have_no_new_accuracy(bench_at, dataset):
    row = base_to_new(bench_at(), dataset, trial_of("coop", "class_specific=true"))
    assert row.base is not None
    assert (row.new, row.h, row.n_images) == (None, None, 4)
    assert "class-specific" in row.note


def test_a_method_with_further_classes_learns_from_base_images_and_names_the_new_classes(bench_at, dataset):
    bench = bench_at(is_boosted=True)
    row = base_to_new(bench, dataset, trial_of("tcp"))
    bundle = read_bundle(bundle_path(bench, row).read_bytes())
    drawn, _ = base_and_new(few_shot(dataset, 2, seed=1))
    features = bundle.tensors["text.features"]

    assert [each.name for each in bundle.manifest.classes] == list(CLASS_NAMES)
    assert bundle.manifest.provenance.data_digests["train"] == drawn.digest
    for half, rows, rate in zip(base_and_new(dataset), (features[:2], features[2:]), (row.base, row.new), strict=True):
        pixels = pixels_of([item.path for item in half.split("test")], bench.base_model.backbone.preprocess)
        images = bench.base_model.encode_images(normalize_pixels(pixels, bench.base_model.backbone.preprocess))
        named = (images.numpy() @ rows.T).argmax(1)
        assert rate == 100 * float(np.mean(named == [item.label for item in half.split("test")]))


def test_a_finished_row_is_reused(bench_at, dataset):
    first = base_to_new(bench_at(), dataset, trial_of("coop"))
    files = files_below(bench_at().results.folder)
    assert base_to_new(bench_at(), dataset, trial_of("coop")) == first
    assert files_below(bench_at().results.folder) == files


def test_a_lost_row_is_evaluated_again_without_training(bench_at, dataset):
    first = base_to_new(bench_at(), dataset, trial_of("coop"))
    bundle = bundle_path(bench_at(), first)
    changed = bundle.stat().st_mtime_ns
    (bench_at().results.folder / "rows" / f"{first.cell}.json").unlink()
    assert base_to_new(bench_at(), dataset, trial_of("coop")) == first
    assert bundle.stat().st_mtime_ns == changed


def test_a_damaged_row_is_an_error_and_not_overwritten(bench_at, dataset):
    row = base_to_new(bench_at(), dataset, Trial())
    (bench_at().results.folder / "rows" / f"{row.cell}.json").write_text('{"row": {')
    with pytest.raises(CheckpointError, match="Delete it to run it again"):
        base_to_new(bench_at(), dataset, Trial())


def test_every_changed_input_gets_another_cell(bench_at, dataset):
    renamed = dataclasses.replace(dataset, class_names=("banded", "dotted", "grid", "wavy"))
    rows = [
        base_to_new(bench_at(), dataset, trial_of("coop")),
        base_to_new(bench_at(), dataset, trial_of("coop", seed=2)),
        base_to_new(bench_at(), dataset, trial_of("coop", shots=1)),
        base_to_new(bench_at(), dataset, trial_of("coop", "context_tokens=3")),
        base_to_new(bench_at(is_boosted=True), dataset, trial_of("coop")),
        base_to_new(bench_at(), renamed, trial_of("coop")),
        all_classes(bench_at(), dataset, trial_of("coop")),
    ]
    assert len({row.cell for row in rows}) == len(rows)
    # Another name of a new class is another measurement of the same training.
    assert rows[5].training == rows[0].training
    assert len({row.training for row in rows}) == len(rows) - 1


def test_an_interrupted_training_resumes_from_its_checkpoint(bench_at, dataset):
    whole = base_to_new(bench_at(), dataset, trial_of("ivlp"))
    losses, tensors = bench_at().results.losses(whole), read_bundle(bundle_path(bench_at(), whole).read_bytes()).tensors
    folder = bundle_path(bench_at(), whole).parent
    shutil.rmtree(bench_at().results.folder)

    # A folder at the path of the bundle makes the run fail at the end, after the checkpoint of the last step.
    (folder / "bundle.safetensors" / "in-the-way").mkdir(parents=True)
    with pytest.raises(OSError, match="bundle"):
        base_to_new(bench_at(checkpoint_every=3), dataset, trial_of("ivlp"))
    shutil.rmtree(folder / "bundle.safetensors")
    digest_chars = len("sha256:") + 64
    saved = torch.load(io.BytesIO((folder / "checkpoint").read_bytes()[digest_chars:]), weights_only=True)
    assert saved["state"]["step"] == 4
    saved["state"]["losses"][0] = 123.0  # a mark that only a run from this checkpoint can carry on
    save_checkpoint(folder / "checkpoint", saved["identity"], saved["state"])

    resumed = base_to_new(bench_at(), dataset, trial_of("ivlp"))
    assert resumed == whole
    assert bench_at().results.losses(resumed) == [123.0, *losses[1:]]
    again = read_bundle(bundle_path(bench_at(), resumed).read_bytes()).tensors
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    assert not (folder / "checkpoint").exists()


def test_few_shot_trains_and_tests_on_all_classes(bench_at, dataset):
    row = all_classes(bench_at(), dataset, trial_of("ivlp"))
    bundle = read_bundle(bundle_path(bench_at(), row).read_bytes())
    assert [each.name for each in bundle.manifest.classes] == list(CLASS_NAMES)
    assert row.accuracy == rate_of(bundle, dataset)
    assert (row.base, row.new, row.h, row.n_images) == (None, None, None, 8)


def test_across_data_sets_one_bundle_uses_the_class_names_of_each_target(bench_at, dataset, tmp_path):
    other = painted(tmp_path / "other", name="other", class_names=("stone", "sand", "snow"), train=0)
    bench = bench_at(is_boosted=True)
    rows = [across(bench, dataset, target, trial_of("coop")) for target in (dataset, other)]
    (training,) = {row.training for row in rows}
    bundle = read_bundle(bundle_path(bench, rows[0]).read_bytes())
    assert [row.accuracy for row in rows] == [rate_of(bundle, dataset), rate_of(bundle, other)]
    assert [(row.dataset, row.target) for row in rows] == [("four", "four"), ("four", "other")]

    few = all_classes(bench, dataset, trial_of("coop"))
    assert few.training == training
    assert few.accuracy == rows[0].accuracy


def test_class_specific_contexts_do_not_transfer_to_another_data_set(bench_at, dataset, tmp_path):
    other = painted(tmp_path / "other", name="other", class_names=("stone", "sand"), train=0)
    bench, trial = bench_at(), trial_of("coop", "class_specific=true")
    row = across(bench, dataset, other, trial)
    assert (row.accuracy, row.n_images) == (None, 0)
    assert "class-specific" in row.note
    assert across(bench, dataset, dataset, trial).accuracy is not None


def test_a_variant_has_a_subset_of_the_classes(bench_at, dataset, tmp_path):
    variant = painted(tmp_path / "sketch", name="sketch", class_names=("Grid", "banded"), train=0)
    row = to_variant(bench_at(), dataset, variant, trial_of("coop"))
    bundle = read_bundle(bundle_path(bench_at(), row).read_bytes())
    assert row.accuracy == rate_of(bundle, variant)

    strange = painted(tmp_path / "strange", name="strange", class_names=("grid", "snow"), train=0)
    with pytest.raises(DatasetError, match="'snow'"):
        to_variant(bench_at(), dataset, strange, trial_of("coop"))


def test_damaged_images_are_dropped_from_the_sample_and_reported(bench_at, tmp_path):
    dataset = painted(tmp_path / "four")
    damaged = few_shot(dataset, 2, seed=1).split("train")[0].path
    damaged.write_bytes(b"no picture")
    bench = bench_at()
    row = base_to_new(bench, dataset, trial_of("coop"))
    assert read_bundle(bundle_path(bench, row).read_bytes()).manifest.provenance.metrics["n_images"] == 3
    assert damaged.name in bench.console.file.getvalue()


def test_a_sample_is_decoded_once_for_all_methods_and_targets(tmp_path):
    dataset, console = painted(tmp_path / "four"), Console(file=io.StringIO(), width=200)
    sampler = ShotSampler(console)
    first = few_shot(dataset, 2, seed=1).split("train")
    first[0].path.write_bytes(b"no picture")
    drawn = sampler.sample(dataset, trial_of("coop"))
    assert [image.path for image in drawn.split("train")] == [image.path for image in first[1:]]

    first[2].path.write_bytes(b"no picture either")  # decoding it again would drop it
    assert sampler.sample(dataset, trial_of("ivlp")) is drawn
    assert console.file.getvalue().count("skipped 1 unreadable train images") == 1
    for other in (trial_of("coop", seed=2), trial_of("coop", shots=3)):
        again = sampler.sample(dataset, other)
        assert first[2].path not in [image.path for image in again.split("train")]
    assert sampler.sample(dataset, Trial()) is dataset


def test_the_predictions_of_a_row_are_saved(bench_at, dataset):
    bench = bench_at()
    row = base_to_new(bench, dataset, Trial())
    predictions = bench.results.predictions(row)
    assert predictions.class_names == CLASS_NAMES
    assert predictions.labels_N.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    is_base = predictions.labels_N < 2
    assert set(predictions.named_N[is_base]) <= {0, 1}
    assert set(predictions.named_N[~is_base]) <= {2, 3}
    assert row.new == 100 * float(np.mean((predictions.named_N == predictions.labels_N)[~is_base]))
    np.testing.assert_allclose(np.linalg.norm(predictions.features_ME, axis=1), 1, atol=1e-5)
    assert predictions.feature_labels_M.tolist() == predictions.labels_N.tolist()


@pytest.mark.parametrize("is_boosted", [False, True])
@pytest.mark.parametrize("method", FEW_SHOT_METHODS)
def test_a_few_shot_head_is_measured_on_base_classes_and_left_out_for_new_ones(
    bench_at, tmp_path_factory, method, is_boosted
):
    many = painted(tmp_path_factory.mktemp("many"), train=6)
    bench = bench_at(is_boosted=is_boosted)
    row = base_to_new(bench, many, Trial.of(method, FewShotRecipe(), shots=5, seed=1))
    bundle, plain = read_bundle(bundle_path(bench, row).read_bytes()), base_to_new(bench, many, Trial())
    base, _ = base_and_new(many)
    predictor = Predictor(tiny_backbone())
    answers = predictor.predict(predictor.model.load_stack(bundle), base)
    assert bundle.manifest.provenance.metrics["n_images"] == 10
    assert row.base == 100 * float(np.mean(answers.named_N == answers.labels_N))
    assert row.new == plain.new
    assert base_to_new(bench, many, Trial.of(method, FewShotRecipe(), shots=5, seed=1)) == row
    assert bench.results.losses(row) == []
