"""`caspl fit`, from labelled images to a bundle that the service loads."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from prompt_store.bundle import read_bundle, write_bundle
from prompt_store.manifest import Calibration
from prompted_clip.few_shot import FEW_SHOT_METHODS
from prompted_clip.fit import fit_few_shot
from prompted_clip.model import PromptedClip
from prompted_clip.semi_supervised import UnlabelledImages
from tests.stacks import random_bundle
from tests.tiny import register_tiny_models, tiny_backbone
from tests.training.data.tiny_images import draw_pets, pixels_of
from training.data.catalog import open_dataset
from training.fit_command import fit_app

PROMPTS = {"image_boost": (2, 3), "text_boost": (2, 2)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_pets(tmp_path_factory.mktemp("pets"), 6)


def caspl_fit(data, folder, bundle, *extra):
    register_tiny_models()
    (folder / "base.safetensors").write_bytes(bundle)
    arguments = ["--data", str(data), "--bundle", str(folder / "base.safetensors"), "--random-weights"]
    arguments += ["--device", "cpu", "--out", str(folder / "new.safetensors"), *extra]
    return CliRunner().invoke(fit_app, arguments, env={"COLUMNS": "250"})


def fitted(data, folder, bundle, *extra):
    """The report and the bundle of a successful run."""
    result = caspl_fit(data, folder, bundle, "--json", *extra)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), read_bundle((folder / "new.safetensors").read_bytes())


def encode(data, bundle):
    """Images of a data set, encoded under a bundle's prompts: the model, its stack and the features."""
    model = PromptedClip(tiny_backbone())
    stack = model.load_stack(bundle)
    pixels = pixels_of([item.path for item in open_dataset(str(data)).split("train")], tiny_backbone().preprocess)
    return model, stack, model.encode_images(pixels, [stack] * len(pixels))


@pytest.mark.parametrize("method", ["auto", *FEW_SHOT_METHODS])
def test_the_served_logits_equal_the_numpy_reference(data, tmp_path, method):
    report, bundle = fitted(data, tmp_path, random_bundle(class_names=("dog", "cat"), **PROMPTS), "--method", method)
    model, stack, images = encode(data, bundle)
    features, texts = images.unit_BE.double().numpy(), bundle.tensors["text.features"].astype(np.float64)
    labels = np.repeat([1, 0, 2], 6)  # the folder's classes are cat, dog and striped circle; the bundle's dog, cat
    text_logits = bundle.manifest.logit_scale * features @ texts.T
    candidates = {report["method"]: FEW_SHOT_METHODS[report["method"]]} if report["alpha"] else {}
    fit = fit_few_shot(features, labels, text_logits, candidates)
    assert report["alpha"] > 0
    assert method in {"auto", report["method"]}
    assert fit.alpha == pytest.approx(report["alpha"])
    np.testing.assert_allclose(model.logits(images, stack).numpy(), fit.logits(features, text_logits), atol=1e-5)
    assert stack.class_names == ("dog", "cat", "striped circle")


def test_new_classes_get_text_features_of_the_bundles_own_prompts(data, tmp_path):
    base = random_bundle(class_names=("cat", "zebra"), **PROMPTS)
    _, bundle = fitted(data, tmp_path, base)
    model = PromptedClip(tiny_backbone())
    expected = model.with_labels(model.load_stack(read_bundle(base)), ["dog", "striped circle"]).text_features
    assert [one.name for one in bundle.manifest.classes] == ["cat", "zebra", "dog", "striped circle"]
    assert (bundle.tensors["text.features"][:2] == read_bundle(base).tensors["text.features"]).all()
    np.testing.assert_array_equal(bundle.tensors["text.features"][2:], expected.numpy())
    assert not bundle.tensors["head.weight"][1].any()  # no images of zebras


def test_the_prompts_stay_and_other_labels_are_scored_as_before(data, tmp_path):
    base = random_bundle(class_names=("cat", "dog"), **PROMPTS)
    _, bundle = fitted(data, tmp_path, base)
    model, stack, images = encode(data, bundle)
    before = model.load_stack(read_bundle(base))
    for name in ("image.boost", "text.boost"):
        assert (bundle.tensors[name] == read_bundle(base).tensors[name]).all()
    scores = [model.logits(images, model.with_labels(one, ["sun", "moon"])) for one in (before, stack)]
    assert torch.equal(*scores)


def test_the_provenance_records_how_the_head_was_made(data, tmp_path):
    base = random_bundle(class_names=("cat", "dog"), **PROMPTS)
    report, bundle = fitted(data, tmp_path, base, "--shots", "5")
    made, stack = bundle.manifest.provenance, bundle.manifest.stack
    assert (made.method, made.phase) == (report["method"], "adapt")
    assert made.recipe == {"method": "auto", "alpha": report["alpha"]}
    assert made.data_digests.keys() == {"train", "bundle"}
    assert made.data_digests["bundle"] == read_bundle(base).digest
    assert made.metrics["n_images_by_class"] == {"cat": 5, "dog": 5, "striped circle": 5}
    assert made.metrics["leave_one_out_accuracy"] == report["accuracy"]["rate"]
    assert (stack.head_share, stack.head_input) == (0.5, "unit")
    assert bundle.manifest.calibration.temperature == pytest.approx(report["temperature"] / 2)
    assert bundle.manifest.calibration.abstain == report["abstain"]
    assert report["digest"] == bundle.digest


def test_with_too_few_images_the_text_features_stay_alone_but_calibrated(data, tmp_path):
    base = random_bundle(class_names=("cat", "dog"), **PROMPTS)
    report, bundle = fitted(data, tmp_path, base, "--shots", "3")
    assert (report["method"], report["alpha"]) == ("text", 0)
    assert not any(one["is_fitted"] for one in report["classes"])
    assert bundle.manifest.stack.head_share is None
    assert bundle.manifest.calibration.temperature == pytest.approx(report["temperature"])


def test_a_fit_replaces_an_earlier_one(data, tmp_path):
    base = random_bundle(class_names=("cat", "dog"), **PROMPTS)
    _, once = fitted(data, tmp_path, base)
    _, twice = fitted(data, tmp_path, write_bundle(once.manifest, once.tensors))
    assert all(np.array_equal(once.tensors[name], twice.tensors[name]) for name in once.tensors)
    assert once.manifest.calibration == twice.manifest.calibration


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"head": "projector", "labels": "own"}, "has a projector head"),
        ({"head": "conditional", "text_adapt": (1, 2)}, "has a conditional head"),
        ({"head": "class"}, "has a class head"),
        ({"labels": "own"}, "other labels cannot be scored"),
    ],
)
def test_a_bundle_that_cannot_be_extended_is_an_error_with_the_reason(data, tmp_path, options, says):
    result = caspl_fit(data, tmp_path, random_bundle(class_names=("cat", "dog"), **options))
    assert result.exit_code == 1
    assert says in " ".join(result.output.split())
    assert not (tmp_path / "new.safetensors").exists()


def test_a_bundle_for_its_own_labels_is_fitted_if_there_are_no_new_ones(data, tmp_path):
    names = ("cat", "dog", "striped circle")
    report, _ = fitted(data, tmp_path, random_bundle(class_names=names, labels="own", text_adapt=(3, 1, 2)))
    assert [one["n_examples"] for one in report["classes"]] == [6, 6, 6]


def test_the_tables_show_accuracy_classes_and_labels_to_check(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "cat" / "0.png").rename(folder / "dog" / "mislabelled.png")
    result = caspl_fit(folder, tmp_path, random_bundle(class_names=("cat", "dog"), **PROMPTS))
    assert result.exit_code == 0, result.output
    assert "accuracy (leave-one-out)" in result.stdout
    assert "striped circle" in result.stdout
    assert "mislabelled.png" in result.stdout


def test_unreadable_images_and_skipped_files_are_reported_as_in_adapting(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "cat" / "torn.png").write_bytes((data / "cat" / "0.png").read_bytes()[:200])
    (folder / "cat" / "notes.txt").write_text("text")
    result = caspl_fit(folder, tmp_path, random_bundle(class_names=("cat", "dog"), **PROMPTS))
    assert result.exit_code == 0, result.output
    assert "Skipped unreadable images (1)" in result.output
    assert "1 file not read: 1 .txt" in result.output
    assert caspl_fit(folder, tmp_path, random_bundle(**PROMPTS), "--strict").exit_code == 1


@pytest.fixture(scope="module")
def further(tmp_path_factory):
    """24 unlabelled images; 12 of them are among those of `data`."""
    return draw_pets(tmp_path_factory.mktemp("further"), 8)


def test_unlabelled_images_lift_a_fit_with_two_images_per_class(data, further, tmp_path):
    base = random_bundle(class_names=("cat", "dog", "striped circle"), **PROMPTS)
    plain, _ = fitted(data, tmp_path, base, "--shots", "2")
    report, bundle = fitted(data, tmp_path, base, "--shots", "2", "--unlabelled", str(further))
    assert (plain["method"], report["method"]) == ("text", "gda-unlabelled")
    assert report["accuracy"]["rate"] > plain["accuracy"]["rate"]
    made = bundle.manifest.provenance
    assert made.method == "gda-unlabelled"
    assert made.data_digests.keys() == {"train", "unlabelled", "bundle"}
    assert made.metrics["n_unlabelled_images"] == report["n_unlabelled"]


def test_the_served_logits_with_unlabelled_images_equal_the_numpy_reference(data, further, tmp_path):
    base = random_bundle(class_names=("cat", "dog", "striped circle"), **PROMPTS)
    report, bundle = fitted(data, tmp_path, base, "--method", "gda", "--unlabelled", str(further))
    model, stack, images = encode(data, bundle)
    texts, scale = bundle.tensors["text.features"].astype(np.float64), bundle.manifest.logit_scale
    features, others = (one.unit_BE.double().numpy() for one in (images, encode(further, bundle)[2]))
    known = {path.read_bytes() for path in data.glob("*/*.png")}
    is_new = [path.read_bytes() not in known for path in sorted(further.glob("*/*.png"))]
    others = others[is_new]
    fit = fit_few_shot(
        features, np.repeat([0, 1, 2], 6), scale * features @ texts.T, {"gda": FEW_SHOT_METHODS["gda"]},
        UnlabelledImages(others, scale * others @ texts.T),
    )  # fmt: skip
    assert (fit.method, report["method"], report["n_unlabelled"]) == ("gda-unlabelled", "gda-unlabelled", 12)
    expected = fit.logits(features, scale * features @ texts.T)
    np.testing.assert_allclose(model.logits(images, stack).numpy(), expected, atol=1e-5)


def test_images_left_out_of_the_unlabelled_ones_are_printed(data, further, tmp_path):
    folder = tmp_path / "further"
    shutil.copytree(further, folder)
    (folder / "torn.png").write_bytes((further / "dog" / "7.png").read_bytes()[:200])
    base = random_bundle(class_names=("cat", "dog"), **PROMPTS)
    result = caspl_fit(data, tmp_path, base, "--unlabelled", str(folder))
    assert result.exit_code == 0, result.output
    assert f"24 images in {folder}" in result.output
    assert "12 of these are among the labelled images" in result.output
    assert "Skipped unreadable images (1): torn.png" in result.output
    assert "unlabelled images" in result.stdout
    result = caspl_fit(data, tmp_path, base, "--unlabelled", str(folder), "--strict")
    assert result.exit_code == 1
    assert "1 images in" in result.output


def test_unlabelled_images_that_do_not_improve_the_fit_are_not_used_and_noted_in_the_table(data, further, tmp_path):
    base = random_bundle(class_names=("cat", "dog"), **PROMPTS)
    _, plain = fitted(data, tmp_path, base, "--shots", "1")
    result = caspl_fit(data, tmp_path, base, "--shots", "1", "--unlabelled", str(further / "dog"))
    assert result.exit_code == 0, result.output
    assert "(no improvement, not used)" in result.stdout
    bundle = read_bundle((tmp_path / "new.safetensors").read_bytes())
    assert bundle.manifest.provenance.method == plain.manifest.provenance.method
    assert bundle.manifest.calibration == plain.manifest.calibration
    assert bundle.tensors.keys() == plain.tensors.keys()


@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        (["--method", "ridge", "--unlabelled", "."], 2, "only auto and gda can use unlabelled images"),
        (["--unlabelled", "/nowhere/at/all"], 1, "No such folder: /nowhere/at/all"),
        (["--unlabelled", "DATA"], 1, "are among the labelled images"),
        (["--method", "gdo"], 2, "Known methods: auto, gda, ridge, tip-adapter"),
        (["--data", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["--bundle", "gone.safetensors"], 1, "gone.safetensors"),
        (["--backbone", "tiny-teacher"], 1, "made for tiny"),
    ],
)
def test_invalid_arguments_fail_and_write_nothing(data, tmp_path, extra, code, says):
    extra = [str(data) if each == "DATA" else each for each in extra]
    result = caspl_fit(data, tmp_path, random_bundle(**PROMPTS), *extra)
    assert result.exit_code == code
    assert says in " ".join(result.output.split())
    assert not (tmp_path / "new.safetensors").exists()


def test_the_given_bundle_is_never_overwritten(data, tmp_path):
    given = random_bundle(**PROMPTS)
    result = caspl_fit(data, tmp_path, given, "--out", str(tmp_path / "base.safetensors"))
    assert result.exit_code == 2
    assert (tmp_path / "base.safetensors").read_bytes() == given


def test_an_earlier_calibration_does_not_affect_the_fit(data, tmp_path):
    base = read_bundle(random_bundle(class_names=("cat", "dog"), **PROMPTS))
    hot = base.manifest.model_copy(update={"calibration": Calibration(temperature=7.0)})
    reports = [fitted(data, tmp_path, write_bundle(one, base.tensors))[0] for one in (base.manifest, hot)]
    assert reports[0]["alpha"] == reports[1]["alpha"]
