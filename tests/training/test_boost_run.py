"""`caspl boost`, from a folder to a bundle: function and command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from tests.stacks import random_bundle
from tests.tiny import random_pixels, register_tiny_models, tiny_backbone
from training.boost_scores import HeldOutScores
from training.cli import boost_app
from training.data.hold_out import hold_out
from training.data.images import find_images
from training.data.views import Views
from training.teacher import Teacher

SETTINGS = ["image_tokens=2", "text_tokens=4", "epochs=2", "batch_size=4", "augmentation=none"]


@pytest.fixture
def workplace(tmp_path):
    register_tiny_models()
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(6):
        Image.fromarray(rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\nstriped_circle\n")
    return tmp_path


def caspl_boost(folder, *extra, settings=SETTINGS, keep_worse=True):
    """Run the command; a random student and six random images rarely gain from a few steps, so `keep_worse`."""
    arguments = ["--images", str(folder / "images"), "--classes", str(folder / "classes.txt"), "--domain", "demo"]
    arguments += ["--out", str(folder / "demo.safetensors"), "--backbone", "tiny", "--teacher", "tiny-teacher"]
    arguments += ["--random-weights", "--device", "cpu", *(["--keep-worse"] if keep_worse else [])]
    for setting in settings:
        arguments += ["--set", setting]
    return CliRunner().invoke(boost_app, [*arguments, *extra])


def test_the_bundle_loads_on_its_backbone_and_has_provenance(workplace):
    result = caspl_boost(workplace, "--json")
    assert result.exit_code == 0, result.output
    bundle = read_bundle((workplace / "demo.safetensors").read_bytes())
    report = json.loads(result.stdout)
    assert report["digest"] == bundle.digest
    provenance = bundle.manifest.provenance
    assert (provenance.method, provenance.phase, provenance.seed) == ("caspl-boost", "boost", 1)
    assert provenance.recipe["epochs"] == 2
    assert provenance.teacher["fingerprint"] == tiny_backbone("tiny-teacher", 1).fingerprint
    assert provenance.metrics["n_images"] == 6
    assert bundle.tensors["image.boost"].shape == (3, 2, 32)
    assert [c.name for c in bundle.manifest.classes] == ["cat", "dog", "striped circle"]

    model = PromptedClip(tiny_backbone())
    stack = model.load_stack(bundle)
    scores = model.score(model.encode_images(random_pixels(2), [stack, stack]), [stack, stack])
    assert torch.stack(scores).shape == (2, 3)


def test_the_stored_text_features_are_those_of_the_prompts(workplace):
    caspl_boost(workplace)
    model = PromptedClip(tiny_backbone())
    stack = model.load_stack(read_bundle((workplace / "demo.safetensors").read_bytes()))
    again = model.with_labels(stack, stack.class_names)
    torch.testing.assert_close(again.text_features, stack.text_features, rtol=0, atol=1e-6)


def test_two_runs_of_one_recipe_give_the_same_tensors(workplace):
    caspl_boost(workplace)
    first = read_bundle((workplace / "demo.safetensors").read_bytes())
    caspl_boost(workplace)
    second = read_bundle((workplace / "demo.safetensors").read_bytes())
    assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_unreadable_images_are_skipped_and_reported(workplace):
    (workplace / "images" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    result = caspl_boost(workplace, "--json")
    assert result.exit_code == 0
    assert "torn.jpg" in result.stderr
    assert json.loads(result.stdout)["n_unreadable"] == 1


@pytest.mark.parametrize(
    ("settings", "spoil", "message"),
    [
        ([*SETTINGS, "epoch=1"], lambda p: None, "unknown recipe key 'epoch'"),
        (SETTINGS, lambda p: (p / "classes.txt").write_text("cat\ncat\n"), "'cat' twice"),
        (SETTINGS, lambda p: (p / "classes.txt").write_text("@1 " * 42), "Shorten the class name"),
        (SETTINGS, lambda p: [f.unlink() for f in (p / "images").iterdir()], "No readable image"),
    ],
)
def test_invalid_input_is_explained_and_writes_nothing(workplace, settings, spoil, message):
    spoil(workplace)
    result = caspl_boost(workplace, settings=settings)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not (workplace / "demo.safetensors").exists()


def test_an_unknown_backbone_is_explained(workplace):
    result = caspl_boost(workplace, "--backbone", "ViT-Z-16")
    assert result.exit_code == 1
    assert "Unknown backbone 'ViT-Z-16'" in " ".join(result.stderr.split())


def test_the_recipe_can_be_printed_without_data():
    result = CliRunner().invoke(boost_app, ["--print-recipe", "--set", "epochs=5"])
    assert result.exit_code == 0
    assert "epochs = 5" in result.stdout
    assert "temperature = 1.0" in result.stdout


def test_missing_options_are_a_usage_error():
    assert CliRunner().invoke(boost_app, []).exit_code == 2


def test_tensorboard_logs_the_loss_of_every_step(workplace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = [*SETTINGS, "warmup_epochs=1", "learning_rate=0.005"]
    result = caspl_boost(workplace, "--tensorboard", str(workplace / "events"), settings=settings)
    assert result.exit_code == 0, result.output
    events = EventAccumulator(str(workplace / "events")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("learning_rate")] == pytest.approx([1e-5, 1e-5, 5e-3, 5e-3])


def test_promptkd_writes_a_bundle_with_a_projector_to_the_teachers_space(workplace):
    result = caspl_boost(workplace, settings=[*SETTINGS, "distillation=promptkd"])
    assert result.exit_code == 0, result.output
    bundle = read_bundle((workplace / "demo.safetensors").read_bytes())
    assert bundle.tensors["text.features"].shape == (3, tiny_backbone("tiny-teacher", 1).embed_dim)
    assert bundle.manifest.provenance.method == "promptkd"
    assert bundle.manifest.stack.labels == "own"


PROMPTKD = [*SETTINGS, "distillation=promptkd"]


def test_promptkd_learns_on_boosting_prompts_from_a_boosted_teacher(workplace):
    names = ("cat", "dog", "striped circle")
    backbone = tiny_backbone("tiny-teacher", 1)
    teacher = random_bundle("demo", names, backbone=backbone, image_boost=(2, 2), text_boost=(2, 2))
    (workplace / "teacher.safetensors").write_bytes(teacher)
    assert caspl_boost(workplace).exit_code == 0
    boosted = (workplace / "demo.safetensors").rename(workplace / "boost.safetensors")
    extra = ["--boost", str(boosted), "--teacher-bundle", str(workplace / "teacher.safetensors")]

    result = caspl_boost(workplace, *extra, settings=PROMPTKD)

    assert result.exit_code == 0, result.output
    base, bundle = (read_bundle((workplace / name).read_bytes()) for name in (boosted.name, "demo.safetensors"))
    for name in ("image.boost", "text.boost"):
        assert np.array_equal(bundle.tensors[name], base.tensors[name])
    model = PromptedClip(backbone)
    taught = model.with_labels(model.load_stack(read_bundle(teacher)), names).text_features
    assert np.array_equal(bundle.tensors["text.features"], taught.numpy())
    assert bundle.tensors["image.adapt"].shape == (3, 2, 32)
    provenance = bundle.manifest.provenance
    assert (provenance.method, provenance.phase) == ("promptkd", "adapt")
    assert provenance.data_digests["boost"] == base.digest
    assert provenance.teacher["bundle"] == read_bundle(teacher).digest


def test_promptkd_on_boosting_prompts_is_compared_with_the_boosted_model(workplace):
    names = ("cat", "dog", "striped circle")
    files = find_images(workplace / "images").files
    _, held_out = hold_out(len(files), 0.5, 1)
    pixels = Views.as_served([files[index] for index in held_out], 32, tiny_backbone().preprocess).load(range(3), 0)
    taught = Teacher(tiny_backbone("tiny-teacher", 1), names, "a photo of a {}.").logits(pixels).argmax(1)
    model, found, expected = PromptedClip(tiny_backbone()), [], []
    for seed in range(3):
        data = random_bundle("demo", names, image_boost=(2, 2), text_boost=(2, 2), image_adapt=(1, 2), seed=seed)
        (workplace / "boost.safetensors").write_bytes(data)
        extra = ["--holdout", "0.5", "--json", "--boost", str(workplace / "boost.safetensors")]
        result = caspl_boost(workplace, *extra, settings=[*PROMPTKD, "epochs=1"])
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout)["held_out_agreement_before"])
        stack = model.boost_stack(model.load_stack(read_bundle(data)))
        named = model.logits(model.encode_images(pixels, [stack] * 3), stack).argmax(1)
        expected.append(float((named == taught).float().mean()))

    assert found == expected
    assert len(set(found)) > 1


def test_only_promptkd_takes_boosting_prompts_and_never_overwrites_them(workplace):
    boosted = workplace / "boost.safetensors"
    boosted.write_bytes(b"unread")

    wrong = caspl_boost(workplace, "--boost", str(boosted))
    same = caspl_boost(workplace, "--boost", str(boosted), "--out", str(boosted), settings=PROMPTKD)

    assert wrong.exit_code == same.exit_code == 2
    assert "distillation=promptkd" in wrong.output
    assert "would overwrite" in same.output
    assert boosted.read_bytes() == b"unread"


def test_boosting_a_data_set_uses_its_train_images_and_its_template_for_the_teacher(workplace):
    (workplace / "table.csv").write_text(
        "path,label,split\n"
        + "".join(f"images/{i}.png,{'cat' if i % 2 else 'dog'},{'test' if i > 3 else 'train'}\n" for i in range(6))
    )
    arguments = ["--data", str(workplace / "table.csv"), "--domain", "demo", "--backbone", "tiny"]
    arguments += ["--teacher", "tiny-teacher", "--random-weights", "--keep-worse", "--json"]
    arguments += ["--out", str(workplace / "demo.safetensors")]
    for setting in SETTINGS:
        arguments += ["--set", setting]
    result = CliRunner().invoke(boost_app, arguments)
    assert result.exit_code == 0, result.output
    manifest = read_bundle((workplace / "demo.safetensors").read_bytes()).manifest
    assert manifest.provenance.metrics["n_images"] == 4
    assert sorted(spec.name for spec in manifest.classes) == ["cat", "dog"]
    assert manifest.provenance.recipe["teacher_template"] == "a photo of a {}."
    report = json.loads(result.stdout)
    assert {f"held_out_accuracy_{when}" for when in ("before", "best", "after")} <= report.keys()


def scripted_scores(monkeypatch, before, *during):
    """Replace the held-out scores by these, in the order of measurement."""
    left = iter((before, *during))
    monkeypatch.setattr(HeldOutScores, "of", lambda self, logits: {"agreement": next(left)})


def test_scores_before_best_and_after_are_printed_reported_and_stored(workplace, monkeypatch):
    scripted_scores(monkeypatch, 0.5, 0.6, 0.9, 0.8, 0.7)
    result = caspl_boost(workplace, "--json", keep_worse=False)
    assert result.exit_code == 0, result.output
    expected = {
        "n_held_out": 1,
        "best_step": 2,
        "held_out_agreement_before": 0.5,
        "held_out_agreement_best": 0.9,
        "held_out_agreement_after": 0.7,
    }
    stored = read_bundle((workplace / "demo.safetensors").read_bytes()).manifest.provenance.metrics
    for found in (json.loads(result.stdout), stored):
        assert {key: found[key] for key in expected} == expected
        assert not any("accuracy" in key for key in found)
    assert "1 images held out, 5 to train on. These are few" in result.stderr
    assert "Held-out images, before training: agreement 50.0%" in result.stderr
    assert "Held-out images, step 2 of 4: agreement 90.0%" in result.stderr


def test_the_best_step_is_written_not_the_last(workplace, monkeypatch):
    found = []
    for scores in ((0.6, 0.9, 0.8, 0.7), (0.6, 0.7, 0.8, 0.9)):
        scripted_scores(monkeypatch, 0.5, *scores)
        caspl_boost(workplace, keep_worse=False)
        found.append(read_bundle((workplace / "demo.safetensors").read_bytes()).tensors["image.boost"])
    assert not np.array_equal(*found)


def test_a_student_made_worse_is_an_error_and_writes_nothing(workplace, monkeypatch):
    scripted_scores(monkeypatch, 0.5, 0.4, 0.3, 0.2, 0.1)
    result = caspl_boost(workplace, keep_worse=False)
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert "made the model worse: agreement on 1 held-out images was 50.0% before training and 40.0% at best" in message
    assert "learning_rate" in message
    assert not list(workplace.glob("demo.safetensors*"))
    scripted_scores(monkeypatch, 0.5, 0.4, 0.3, 0.2, 0.1)
    assert caspl_boost(workplace, keep_worse=True).exit_code == 0
    assert (workplace / "demo.safetensors").exists()


def test_without_hold_out_the_last_step_is_written_and_that_is_reported(workplace):
    result = caspl_boost(workplace, "--holdout", "0", "--json", keep_worse=False)
    assert result.exit_code == 0, result.output
    assert "nothing checks" in " ".join(result.stderr.split())
    assert not any("held_out" in key for key in json.loads(result.stdout))


def test_a_resumed_run_prints_its_step(workplace, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("training.boost_run.export_bundle", lambda *_, **__: 1 / 0)
        assert isinstance(caspl_boost(workplace, "--checkpoint-every", "3").exception, ZeroDivisionError)
    result = caspl_boost(workplace, "--checkpoint-every", "3")
    assert result.exit_code == 0, result.output
    assert "boosting demo: resuming after step 4 of 4" in result.stderr


def test_a_changed_hold_out_does_not_resume(workplace, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("training.boost_run.export_bundle", lambda *_, **__: 1 / 0)
        caspl_boost(workplace, "--checkpoint-every", "3")
    result = caspl_boost(workplace, "--holdout", "0.4")
    assert result.exit_code == 1
    assert "holdout differ" in result.stderr
