"""`caspl adapt --labels none`: from unlabelled images to a bundle, for every label-free method."""

import dataclasses
import datetime
import io
import json
import re
import shutil
import tomllib

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from tests.stacks import random_bundle
from tests.tiny import register_tiny_models, tiny_backbone
from tests.training.data.tiny_images import draw_pets, pixels_of
from training.cli import adapt_app
from training.data.catalog import open_dataset
from training.label_free.methods import LABEL_FREE
from training.label_free_run import LabelFreeJob, run_label_free
from training.loop_progress import train_with_progress
from training.prompted_backbone import PromptedBackbone, boosted_backbone
from training.recipe import AdaptRecipe, read_recipe
from training.unlabelled import train_images_without_labels

QUIET = Console(quiet=True)
NAMES = ("cat", "dog", "striped circle")
QUICK = {"epochs": 2, "warmup_epochs": 0, "batch_size": 4}
FEWER = {"images_per_class": 2, "text_steps": 3, "templates": 2, "image_depth": 2, "iterations": 2}


class FixedTime(datetime.datetime):
    """A fixed time, so that bundles differ in their learned values alone."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, tzinfo=tz)


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch):
    monkeypatch.setattr("prompted_clip.provenance.datetime.datetime", FixedTime)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_pets(tmp_path_factory.mktemp("pets"), 5)


@pytest.fixture(scope="module")
def boosting_bundle():
    return random_bundle(domain="pets", image_boost=(2, 3), text_boost=(2, 2))


def quick(name):
    fields = LABEL_FREE[name].recipe.model_fields
    values = {key: value for key, value in (QUICK | FEWER).items() if key in fields}
    return read_recipe(LABEL_FREE[name].recipe, None, [f"{key}={json.dumps(value)}" for key, value in values.items()])


def learn(name, images, out, model, *, classes=NAMES, recipe=None, teacher=None):
    job = LabelFreeJob("pets", images, classes, out, out.with_name("state"), teacher=teacher)
    return run_label_free(job, name, recipe or quick(name), model, QUIET)


def images_of(folder):
    return train_images_without_labels(open_dataset(str(folder)), QUIET)


def table_of(data, path, labels):
    """A table of the same images with other labels, in another order."""
    files = sorted(data.rglob("*.png"))
    lines = [f"{file},{label}" for file, label in zip(files, labels, strict=True)]
    path.write_text("\n".join(["path,label", *reversed(lines)]) + "\n")
    return path


@pytest.mark.parametrize("is_boosted", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "boosted"])
@pytest.mark.parametrize("name", LABEL_FREE)
def test_permuted_and_removed_labels_give_the_same_bundle(data, boosting_bundle, tmp_path, name, is_boosted):
    model = PromptedBackbone(tiny_backbone())
    if is_boosted:
        model = boosted_backbone(tiny_backbone(), read_bundle(boosting_bundle))
    names = [NAMES[index % 3] for index in range(15)]
    permuted = open_dataset(table_of(data, tmp_path / "permuted.csv", names))
    assert [image.label for image in permuted.split("train")] != [
        image.label for image in open_dataset(str(data)).split("train")
    ]
    (tmp_path / "removed").mkdir()
    for number, file in enumerate(sorted(data.rglob("*.png"), reverse=True)):
        shutil.copy(file, tmp_path / "removed" / f"{number:03d}.png")
    runs = {
        "true": learn(name, images_of(data), tmp_path / "true.safetensors", model),
        "permuted": learn(name, train_images_without_labels(permuted, QUIET), tmp_path / "other.safetensors", model),
        "removed": json.loads(
            adapt(
                tmp_path, name, boosting_bundle if is_boosted else None,
                "--images", tmp_path / "removed", "--classes", class_list(tmp_path), "--json",
            ).stdout
        ),
    }  # fmt: skip

    assert runs["true"]["digest"] == runs["permuted"]["digest"] == runs["removed"]["digest"]


def class_list(folder):
    path = folder / "classes.txt"
    path.write_text("".join(f"{name}\n" for name in NAMES))
    return path


def adapt(folder, method, boost, *extra):
    register_tiny_models()
    arguments = ["--labels", "none", "--method", method, "--domain", "pets", "--backbone", "tiny", "--random-weights"]
    arguments += ["--device", "cpu", "--out", folder / "pets.safetensors"]
    fields = LABEL_FREE[method].recipe.model_fields if method in LABEL_FREE else {}
    for key, value in (QUICK | FEWER).items():
        arguments += ["--set", f"{key}={json.dumps(value)}"] if key in fields else []
    if boost is not None:
        (folder / "boost.safetensors").write_bytes(boost)
        arguments += ["--boost", folder / "boost.safetensors"]
    return CliRunner().invoke(adapt_app, [str(argument) for argument in [*arguments, *extra]])


@pytest.mark.parametrize("is_boosted", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "boosted"])
@pytest.mark.parametrize("name", LABEL_FREE)
def test_every_method_makes_a_bundle_that_serves(data, boosting_bundle, tmp_path, name, is_boosted):
    result = adapt(tmp_path, name, boosting_bundle if is_boosted else None, "--data", data, "--json")
    assert result.exit_code == 0, result.output
    assert "even if it is worse than the base model" in " ".join(result.stderr.split())
    bundle, report = read_bundle((tmp_path / "pets.safetensors").read_bytes()), json.loads(result.stdout)
    assert report["digest"] == bundle.digest
    assert report["n_images"] == 15
    assert bundle.manifest.provenance.method == name
    assert ("image.boost" in bundle.tensors) == is_boosted
    assert sorted(path.name for path in tmp_path.iterdir() if "checkpoint" in path.name) == []

    model = PromptedClip(tiny_backbone())
    stack = model.load_stack(bundle)
    pixels = pixels_of(sorted(data.rglob("*.png")), tiny_backbone().preprocess)
    scores = torch.stack(model.score(model.encode_images(pixels, [stack] * 15), [stack] * 15))
    assert stack.class_names == NAMES
    assert torch.isfinite(scores).all()
    assert torch.allclose(scores.sum(1), torch.ones(15))


@pytest.mark.parametrize("name", LABEL_FREE)
def test_each_method_prints_its_recipe_with_every_key(name):
    result = CliRunner().invoke(adapt_app, ["--labels", "none", "--method", name, "--print-recipe"])
    assert result.exit_code == 0, result.output
    assert set(tomllib.loads(result.stdout)) == set(LABEL_FREE[name].recipe.model_fields)


@pytest.mark.parametrize("name", [name for name, entry in LABEL_FREE.items() if entry.takes_teacher])
def test_a_teacher_predicts_the_pseudo_labels(data, tmp_path, name):
    own = learn(name, images_of(data), tmp_path / "own.safetensors", PromptedBackbone(tiny_backbone()))
    result = adapt(tmp_path, name, None, "--data", data, "--teacher", "tiny-teacher", "--json")
    assert result.exit_code == 0, result.output
    bundle = read_bundle((tmp_path / "pets.safetensors").read_bytes())
    assert bundle.digest != own["digest"]
    assert bundle.manifest.provenance.teacher["arch"] == "tiny-teacher"


@pytest.mark.parametrize("name", [name for name, entry in LABEL_FREE.items() if issubclass(entry.recipe, AdaptRecipe)])
def test_an_interrupted_run_resumes_to_the_same_bits(data, tmp_path, name, monkeypatch):
    model, images = PromptedBackbone(tiny_backbone()), images_of(data)
    whole = learn(name, images, tmp_path / "whole.safetensors", model)

    class KilledError(Exception):
        pass

    def kill(*_, **__):
        raise KilledError

    job = LabelFreeJob("pets", images, NAMES, tmp_path / "b.safetensors", tmp_path / "s", 1)
    with monkeypatch.context() as patch:
        patch.setattr("training.label_free_run.export_bundle", kill)
        with pytest.raises(KilledError):
            run_label_free(job, name, quick(name), model, QUIET)
    assert (tmp_path / "s").is_file()

    again = run_label_free(job, name, quick(name), model, QUIET)

    assert again["digest"] == whole["digest"]
    assert not list(tmp_path.glob("s*"))


@pytest.mark.parametrize(
    "kind", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("textual", "visual")), "multimodal"]
)
def test_a_grip_killed_in_its_second_iteration_resumes_there_to_the_same_bits(data, tmp_path, kind, monkeypatch):
    model, images, output = PromptedBackbone(tiny_backbone()), images_of(data), io.StringIO()
    recipe = quick("grip").model_copy(update={"prompts": kind, "tokens": 2, "learning_rate": 0.01})
    whole = learn("grip", images, tmp_path / "whole.safetensors", model, recipe=recipe)
    assert whole["n_iterations"] == 2

    class KilledError(Exception):
        pass

    def train(*arguments, title, **options):
        if "iteration 2" in title:
            raise KilledError
        return train_with_progress(*arguments, title=title, **options)

    with monkeypatch.context() as patch:
        patch.setattr("training.label_free_run.train_with_progress", train)
        with pytest.raises(KilledError):
            learn("grip", images, tmp_path / "b.safetensors", model, recipe=recipe)
    assert [path.name for path in tmp_path.glob("state*")] == ["state"]

    job = LabelFreeJob("pets", images, NAMES, tmp_path / "b.safetensors", tmp_path / "state")
    again = run_label_free(job, "grip", recipe, model, Console(file=output, width=200))

    assert again["digest"] == whole["digest"]
    assert re.search(r"iteration 1 of 2: resuming after step (\d+) of \1\n", output.getvalue())
    assert "iteration 2 of 2: resuming" not in output.getvalue()
    assert not list(tmp_path.glob("state*"))


@pytest.mark.parametrize("is_boosted", [False, True], ids=["plain", "boosted"])
@pytest.mark.parametrize(
    ("kind", "groups"), [("textual", {"text"}), ("visual", {"image"}), ("multimodal", {"image", "text"})]
)
def test_grip_exports_the_prompts_of_its_kind(data, boosting_bundle, tmp_path, kind, groups, is_boosted):
    boost = boosting_bundle if is_boosted else None
    result = adapt(tmp_path, "grip", boost, "--data", data, "--set", f"prompts={kind}", "--set", "tokens=2", "--json")
    assert result.exit_code == 0, result.output
    bundle = read_bundle((tmp_path / "pets.safetensors").read_bytes())
    assert {name.split(".")[0] for name in bundle.tensors if name.endswith(".adapt")} == groups

    model = PromptedClip(tiny_backbone())
    stack = model.load_stack(bundle)
    pixels = pixels_of(sorted(data.rglob("*.png")), tiny_backbone().preprocess)
    scores = torch.stack(model.score(model.encode_images(pixels, [stack] * 15), [stack] * 15))
    assert torch.allclose(scores.sum(1), torch.ones(15))


@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        (["--shots", "4"], 2, "pseudo-labelled images is a recipe value"),
        (["--holdout", "0"], 2, "cannot be measured without labels"),
        (["--keep-worse"], 2, "cannot be measured without labels"),
        (["--images", "."], 2, "either --data, or --images and --classes"),
        (["--method", "coop"], 2, "coop learns from labels. Known methods without labels: upl"),
        (["--method", "ulp"], 2, "upl"),
        (["--labels", "given"], 2, "upl learns without labels: add --labels none"),
        (["--domain", "Pets!"], 1, "lower-case"),
        (["--set", "wavelength=3"], 1, "unknown recipe key 'wavelength'"),
        (["--labels", "given", "--method", "coop", "--teacher", "tiny"], 2, "only --labels none uses it"),
        (["--teacher-pretrained", "openai"], 2, "only --teacher uses it"),
        (["--teacher-preprocess-of", "openai"], 2, "only --teacher uses it"),
    ],
)
def test_invalid_arguments_fail_before_training(data, tmp_path, extra, code, says):
    result = adapt(tmp_path, "upl", None, "--data", data, *extra)
    assert result.exit_code == code
    assert says.replace(" ", "") in "".join(result.output.replace("│", "").split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--teacher", "tiny"], "transclip uses the base model's own predictions"),
        (["--tensorboard", "logs"], "transclip has no training steps"),
        (["--checkpoint-every", "5"], "transclip has no training steps"),
    ],
)
def test_options_that_have_no_effect_on_a_method_are_refused(data, tmp_path, option, message):
    result = adapt(tmp_path, "transclip", None, "--data", data, *option)
    assert result.exit_code == 2
    assert message.replace(" ", "") in "".join(result.output.replace("│", "").split())
    assert not list(tmp_path.iterdir())


def test_a_root_without_a_data_set_is_refused(data, tmp_path):
    result = adapt(tmp_path, "upl", None, "--images", data, "--classes", class_list(tmp_path), "--root", data)
    assert result.exit_code == 2
    assert "only --data uses it" in result.output


def test_unreadable_images_are_reported_and_skipped(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    for torn in (folder / "cat").iterdir():  # no error for a class without a readable image: labels are not read
        torn.write_bytes(torn.read_bytes()[:100])
    result = adapt(tmp_path, "upl", None, "--data", folder, "--json")
    assert result.exit_code == 0, result.output
    assert "Skipped unreadable images (5)" in result.output
    assert json.loads(result.stdout)["n_images"] == 10
    strict = adapt(tmp_path, "upl", None, "--data", folder, "--strict")
    assert strict.exit_code == 1
    assert "5 images" in strict.output


@pytest.mark.parametrize(
    ("extra", "template"), [([], "a drawing of a {}."), (["--set", "template=a map of a {}."], "a map of a {}.")]
)
def test_pseudo_labels_use_the_data_sets_template_unless_the_recipe_has_one(
    data, tmp_path, monkeypatch, extra, template
):
    drawings = dataclasses.replace(open_dataset(str(data)), template="a drawing of a {}.")
    monkeypatch.setattr("training.data.catalog.open_dataset", lambda *_: drawings)
    result = adapt(tmp_path, "upl", None, "--data", data, *extra)
    assert result.exit_code == 0, result.output
    recipe = read_bundle((tmp_path / "pets.safetensors").read_bytes()).manifest.provenance.recipe
    assert recipe["template"] == template


def test_upl_trains_coop_on_the_images_that_zero_shot_is_most_confident_about(data, tmp_path):
    model, images = PromptedBackbone(tiny_backbone()), images_of(data)
    result = learn("upl", images, tmp_path / "pets.safetensors", model)
    server = PromptedClip(tiny_backbone())
    stack = server.plain_stack("pets", NAMES, ["a photo of a {}."])
    pixels = pixels_of(images.files, tiny_backbone().preprocess)
    scores = torch.stack(server.score(server.encode_images(pixels, [stack] * 15), [stack] * 15))
    predicted = scores.argmax(1)
    expected = sum(min(2, int((predicted == label).sum())) for label in range(3))
    assert result["n_pseudo_labels"] == expected
    assert result["steps"] == 2 * -(-expected // 4)
    assert np.isfinite(result["losses"]).all()
