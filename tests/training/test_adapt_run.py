"""`caspl adapt`, from labelled images to a bundle: every method, function, command and resuming."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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
from training.adapt_run import AdaptJob, run_adapt
from training.adapting.adapter import Adapter
from training.adapting.methods import METHODS
from training.checkpoint import save_checkpoint
from training.cli import adapt_app
from training.data.catalog import open_dataset
from training.data.few_shot import few_shot
from training.data.hold_out import hold_out_per_class
from training.data.views import Views
from training.errors import CheckpointError
from training.evaluation.predict import Predictor
from training.files import digest_of
from training.loop import train
from training.prompted_backbone import PromptedBackbone, boosted_backbone
from training.recipe import read_recipe

QUICK = ["epochs=2", "batch_size=3", "augmentation=none", "warmup_epochs=0"]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_pets(tmp_path_factory.mktemp("pets"), 4)


def boosting_bundle():
    return random_bundle(domain="pets", image_boost=(2, 3), text_boost=(2, 2))


def base_model(is_boosted):
    return (
        boosted_backbone(tiny_backbone(), read_bundle(boosting_bundle()))
        if is_boosted
        else PromptedBackbone(tiny_backbone())
    )


def adapter_for(name, dataset, model, recipe):
    items = dataset.split("train")
    views = Views.for_training([item.path for item in items], model.backbone, recipe)
    method = METHODS[name].build(model, dataset.class_names, recipe)
    return Adapter(method, model, views, [item.label for item in items], recipe)


@pytest.mark.parametrize("is_boosted", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "boosted"])
@pytest.mark.parametrize("name", METHODS)
def test_the_service_predicts_the_same_as_training(data, tmp_path, name, is_boosted):
    dataset = few_shot(open_dataset(str(data)), 2, seed=1)
    recipe = read_recipe(METHODS[name].recipe, None, QUICK)
    model = base_model(is_boosted)
    job = AdaptJob("pets", dataset, tmp_path / "pets.safetensors", tmp_path / "state")
    run_adapt(job, name, recipe, model, QUIET)

    adapter = adapter_for(name, dataset, model, recipe)
    train(adapter, recipe)
    with torch.no_grad():
        predicted = adapter.method.logits(adapter.batch(torch.arange(adapter.n_images), 0)).softmax(1)

    server = PromptedClip(tiny_backbone())
    stack = server.load_stack(read_bundle((tmp_path / "pets.safetensors").read_bytes()))
    pixels = pixels_of([item.path for item in dataset.split("train")], tiny_backbone().preprocess)
    rows = [stack] * len(pixels)
    served = server.score(server.encode_images(pixels, rows), rows)
    torch.testing.assert_close(torch.stack(served), predicted, atol=1e-5, rtol=1e-4)
    assert stack.class_names == ("cat", "dog", "striped circle")
    assert (stack.image_boost is not None) == is_boosted


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
@pytest.mark.parametrize("name", ["coop", "promptsrc"])
def test_caching_frozen_features_does_not_change_the_run(data, name, augmentation):
    dataset, model = open_dataset(str(data)), base_model(is_boosted=True)
    recipe = read_recipe(METHODS[name].recipe, None, [*QUICK, f"augmentation={augmentation}", "fixed_views=2"])
    once, each = (adapter_for(name, dataset, model, recipe) for _ in range(2))

    def compute(indices, epoch, pixels=None):
        with torch.no_grad():
            return model.encode_images(each._images(each._views.load(indices.tolist(), epoch)))

    each._feature_cache.get = each._reference_cache.get = compute
    assert train(once, recipe).losses == pytest.approx(train(each, recipe).losses, rel=1e-4)


def caspl_adapt(data, folder, *extra):
    register_tiny_models()
    arguments = ["--method", "coop", "--data", str(data), "--domain", "pets", "--shots", "2", "--backbone", "tiny"]
    arguments += ["--random-weights", "--device", "cpu", "--out", str(folder / "pets.safetensors"), "--keep-worse"]
    for setting in QUICK:
        arguments += ["--set", setting]
    return CliRunner().invoke(adapt_app, [*arguments, *extra])


def test_the_command_writes_a_few_shot_bundle_with_provenance(data, tmp_path):
    (tmp_path / "boost.safetensors").write_bytes(boosting_bundle())
    result = caspl_adapt(data, tmp_path, "--json", "--boost", str(tmp_path / "boost.safetensors"))
    assert result.exit_code == 0, result.output
    bundle = read_bundle((tmp_path / "pets.safetensors").read_bytes())
    assert json.loads(result.stdout)["digest"] == bundle.digest
    provenance = bundle.manifest.provenance
    assert (provenance.method, provenance.phase, provenance.seed) == ("coop", "adapt", 1)
    assert provenance.data_digests["boost"] == read_bundle(boosting_bundle()).digest
    assert provenance.recipe["epochs"] == 2
    assert provenance.metrics["n_images"] == 6
    assert provenance.metrics["n_held_out"] == 3
    assert {f"held_out_accuracy_{when}" for when in ("before", "best", "after")} <= json.loads(result.stdout).keys()
    assert "3 images held out, 6 to train on" in " ".join(result.stderr.split())
    assert not (tmp_path / "pets.safetensors.checkpoint").exists()


def test_each_method_prints_its_recipe_with_every_key():
    for name, entry in METHODS.items():
        result = CliRunner().invoke(adapt_app, ["--method", name, "--print-recipe"])
        assert result.exit_code == 0
        assert set(tomllib.loads(result.stdout)) == set(entry.recipe.model_fields)


@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        (["--set", "wavelength=3"], 1, "unknown recipe key 'wavelength'"),
        (["--method", "magic"], 2, "Known methods: coop"),
        (["--domain", "Pets!"], 1, "lower-case"),
        (["--data", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["--boost", "gone.safetensors"], 1, "gone.safetensors"),
        (["--device", "gpu"], 2, "auto, cpu, cuda"),
        (["--set", "warmup_epochs=2"], 1, "warmup_epochs must be less than epochs"),
        (["--method", "dept", "--set", "host_values={token=3}"], 1, "unknown recipe key 'token'"),
    ],
)
def test_invalid_arguments_fail_before_training(data, tmp_path, extra, code, says):
    result = caspl_adapt(data, tmp_path, *extra)
    assert result.exit_code == code
    assert says in result.output.replace("\n", "")
    assert not list(tmp_path.iterdir())


def test_an_unreadable_image_is_reported_and_skipped(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "cat" / "torn.png").write_bytes((data / "cat" / "0.png").read_bytes()[:200])
    result = caspl_adapt(folder, tmp_path, "--shots", "0", "--holdout", "0")
    assert result.exit_code == 0, result.output
    assert "Skipped unreadable images (1)" in result.output
    assert "torn.png" in result.output
    assert read_bundle((tmp_path / "pets.safetensors").read_bytes()).manifest.provenance.metrics["n_images"] == 12
    strict = caspl_adapt(folder, tmp_path, "--shots", "0", "--strict")
    assert strict.exit_code == 1
    assert "torn.png" in strict.output.replace("\n", "")


def test_a_model_made_worse_is_an_error_and_writes_nothing(data, tmp_path, monkeypatch):
    left = iter((0.4, 0.3, 0.2, 0.1, 0.0))
    monkeypatch.setattr(Adapter, "zero_shot_accuracy", lambda self, texts: 0.9)
    monkeypatch.setattr(Adapter, "accuracy", lambda self, n_images: next(left))
    register_tiny_models()
    arguments = ["--method", "coop", "--data", str(data), "--domain", "pets", "--shots", "2", "--backbone", "tiny"]
    arguments += ["--random-weights", "--device", "cpu", "--out", str(tmp_path / "pets.safetensors")]
    result = CliRunner().invoke(adapt_app, [*arguments, *(part for value in QUICK for part in ("--set", value))])
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert "accuracy on 3 held-out images was 90.0% before training and 40.0% at best, after step 1 of 4" in message
    assert not list(tmp_path.iterdir())


def test_held_out_images_are_not_trained_on(data, tmp_path):
    dataset = hold_out_per_class(open_dataset(str(data)), 0.1, seed=1)
    held_out = {image.path for image in dataset.split("val")}
    assert len(held_out) == 3
    assert held_out.isdisjoint(image.path for image in few_shot(dataset, 16, seed=1).split("train"))


def test_before_training_is_the_zero_shot_accuracy_of_the_base_model(data):
    dataset, model = open_dataset(str(data)), base_model(is_boosted=True)
    adapter = adapter_for("coop", dataset, model, read_recipe(METHODS["coop"].recipe, None, QUICK))
    text = model.zero_shot_text(dataset.class_names, [model.template])
    server = PromptedClip(tiny_backbone())
    stack = server.load_stack(read_bundle(boosting_bundle()))
    stack = server.with_labels(stack, dataset.class_names)
    predictions = Predictor(tiny_backbone()).predict(stack, dataset, "train")
    expected = float((predictions.named_N == predictions.labels_N).mean())
    assert adapter.zero_shot_accuracy(text) == pytest.approx(expected)


def test_without_hold_out_the_last_step_is_written_and_that_is_reported(data, tmp_path):
    result = caspl_adapt(data, tmp_path, "--holdout", "0", "--json")
    assert result.exit_code == 0, result.output
    assert "nothing checks" in " ".join(result.stderr.split())
    assert not any("held_out" in key for key in json.loads(result.stdout))


def test_the_boosting_bundle_is_never_overwritten(data, tmp_path):
    path = tmp_path / "pets.safetensors"
    path.write_bytes(boosting_bundle())
    result = caspl_adapt(data, tmp_path, "--boost", str(path))
    assert result.exit_code == 2
    assert path.read_bytes() == boosting_bundle()


def test_a_run_on_boosting_prompts_does_not_resume_without_them(data, tmp_path):
    dataset = open_dataset(str(data))
    recipe = read_recipe(METHODS["coop"].recipe, None, QUICK)
    job = AdaptJob("pets", dataset, tmp_path / "pets.safetensors", tmp_path / "state", checkpoint_every=1)
    boosted = base_model(is_boosted=True)
    method = METHODS["coop"].build(boosted, dataset.class_names, recipe)
    identity = {"train": dataset.digest, "boost": boosted.boost_digest, "method": "coop", "select": "False"}
    identity |= {"recipe": digest_of(recipe.model_dump_json().encode()), "backbone": tiny_backbone().fingerprint}
    save_checkpoint(job.checkpoint, identity, {"learner": method.state_dict()})
    with pytest.raises(CheckpointError, match="boost differ"):
        run_adapt(job, "coop", recipe, base_model(is_boosted=False), QUIET)


def test_dept_passes_host_values_to_its_host(data):
    dataset, model = open_dataset(str(data)), base_model(is_boosted=False)
    recipe = read_recipe(METHODS["dept"].recipe, None, ["host=ivlp", "host_values={image_tokens=3, text_depth=1}"])
    exported = METHODS["dept"].build(model, dataset.class_names, recipe).fold()
    assert exported.image_adapt.shape[1] == 3
    assert exported.text_adapt.shape[0] == 1


def test_depts_printed_recipe_includes_host_values_and_reads_back(tmp_path):
    kind = METHODS["dept"].recipe
    shown = read_recipe(kind, None, ["host=coop", "host_values={context_tokens=3}"])
    (tmp_path / "recipe.toml").write_text(shown.to_toml())
    assert read_recipe(kind, tmp_path / "recipe.toml") == shown
    assert shown.host_values == {**read_recipe(kind, None, ["host=coop"]).host_values, "context_tokens": 3}
    assert "epochs" not in shown.host_values


def start_adapt(data, out, **options):
    command = [sys.executable, "-P", "-m", "caspl", "adapt", "--method", "ivlp", "--data", str(data)]
    command += ["--domain", "pets", "--shots", "4", "--backbone", "demo-student", "--device", "cpu", "--out", str(out)]
    for setting in ("epochs=15", "batch_size=4", "warmup_epochs=0", "image_depth=3"):
        command += ["--set", setting]
    command += ["--checkpoint-every", "1", "--keep-worse"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options
    )


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(data, tmp_path):
    whole = start_adapt(data, tmp_path / "whole.safetensors")
    killed = start_adapt(data, tmp_path / "killed.safetensors")
    deadline_s = time.monotonic() + 60
    while not (tmp_path / "killed.safetensors.checkpoint").exists() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=10)
    assert not (tmp_path / "killed.safetensors").exists()
    again = start_adapt(data, tmp_path / "killed.safetensors")
    for run in (whole, again):
        output, _ = run.communicate(timeout=90)
        assert run.returncode == 0, output
    one, two = (read_bundle((tmp_path / f"{name}.safetensors").read_bytes()) for name in ("whole", "killed"))
    assert all(np.array_equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("is_boosted", [False, True], ids=["plain", "boosted"])
def test_few_shot_heads_are_methods_too(data, tmp_path, is_boosted):
    (tmp_path / "boost.safetensors").write_bytes(boosting_bundle())
    register_tiny_models()
    arguments = ["--method", "gda", "--data", str(data), "--domain", "pets", "--backbone", "tiny", "--random-weights"]
    arguments += ["--device", "cpu", "--out", str(tmp_path / "pets.safetensors"), "--json"]
    boost = ["--boost", str(tmp_path / "boost.safetensors")] if is_boosted else []
    result = CliRunner().invoke(adapt_app, arguments + boost)
    assert result.exit_code == 0, result.output
    bundle, report = read_bundle((tmp_path / "pets.safetensors").read_bytes()), json.loads(result.stdout)
    assert report["digest"] == bundle.digest
    assert report["n_examples"] == 12  # nothing is held out
    assert ("image.boost" in bundle.tensors) == is_boosted
    assert bundle.manifest.templates == (["{}."] if is_boosted else ["a photo of a {}."])


@pytest.mark.parametrize("option", ["--checkpoint-every=5", "--holdout=0.2", "--keep-worse", "--tensorboard=logs"])
def test_options_of_training_steps_are_refused_for_a_few_shot_head(data, option):
    result = CliRunner().invoke(adapt_app, ["--method", "gda", "--data", str(data), "--domain", "pets", option])
    assert result.exit_code == 2
    assert "gda has no training steps" in result.output


def test_the_recipe_of_a_few_shot_head_is_its_seed():
    result = CliRunner().invoke(adapt_app, ["--method", "ridge", "--print-recipe"])
    assert tomllib.loads(result.stdout) == {"seed": 1}
    wrong = CliRunner().invoke(adapt_app, ["--method", "ridge", "--set", "epochs=3", "--print-recipe"])
    assert "unknown recipe key 'epochs'" in wrong.output
