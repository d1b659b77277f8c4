"""`caspl boost` with several teachers: options, prompts, held-out agreement, provenance and errors."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from prompt_store.bundle import read_bundle
from tests.stacks import random_bundle
from tests.tiny import register_tiny_models, tiny_backbone
from training.boost_scores import HeldOutScores
from training.cli import boost_app
from training.data.hold_out import hold_out
from training.data.images import find_images
from training.data.views import Views
from training.errors import BackbonePairError
from training.recipe import BoostRecipe
from training.teacher import Teacher
from training.teacher_choice import check_teachers
from training.teacher_weights import joint_logits

NAMES = ("cat", "dog", "newt")
SETTINGS = ["image_tokens=2", "text_tokens=4", "epochs=2", "batch_size=4", "augmentation=none"]
TWO = ["--teacher", "tiny-teacher", "--teacher", "tiny-teacher"]


@pytest.fixture
def workplace(tmp_path):
    register_tiny_models()
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.fromarray(rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    return tmp_path


def caspl_boost(folder, *options, settings=SETTINGS):
    """Run the command; random weights give the teachers the seeds 1, 2, ... in their order."""
    arguments = ["--images", str(folder / "images"), "--classes", str(folder / "classes.txt"), "--domain", "demo"]
    arguments += ["--out", str(folder / "demo.safetensors"), "--backbone", "tiny", "--device", "cpu"]
    arguments += ["--keep-worse", "--json", "--random-weights"]
    for setting in settings:
        arguments += ["--set", setting]
    return CliRunner().invoke(boost_app, [*arguments, *options])


def boosted(folder, *options, **more):
    result = caspl_boost(folder, *options, **more)
    assert result.exit_code == 0, result.output
    return result, read_bundle((folder / "demo.safetensors").read_bytes())


def message(result):
    return " ".join(result.stderr.replace("│", " ").split())


def weighed(kind):
    return [*SETTINGS, f"teacher_weights={kind}"]


def identity(seed):
    return tiny_backbone("tiny-teacher", seed).identity


def test_the_provenance_lists_the_teachers_in_order_and_the_run_prints_them(workplace):
    result, bundle = boosted(workplace, *TWO, settings=weighed("entropy"))
    assert bundle.manifest.provenance.teacher == {"teachers": [identity(1), identity(2)]}
    assert bundle.manifest.provenance.recipe["teacher_weights"] == "entropy"
    assert "2 teachers: tiny-teacher, tiny-teacher; teacher_weights entropy" in message(result)


def test_one_teacher_has_the_provenance_of_one_and_no_line(workplace):
    result, bundle = boosted(workplace, "--teacher", "tiny-teacher")
    assert bundle.manifest.provenance.teacher == identity(1)
    assert "teachers" not in message(result)


def test_the_teachers_and_their_weights_change_the_prompts(workplace):
    settings = ["--holdout", "0"]
    found = [boosted(workplace, "--teacher", "tiny-teacher", *settings)[1]]
    found += [boosted(workplace, *TWO, *settings, settings=weighed(kind))[1] for kind in ("mean", "entropy")]
    prompts = [bundle.tensors["image.boost"] for bundle in found]
    assert all(not np.array_equal(one, other) for one, other in itertools.pairwise(prompts))


def test_agreement_on_held_out_images_is_that_with_the_weighted_teachers(workplace, monkeypatch):
    taught = []
    monkeypatch.setattr(HeldOutScores, "of", lambda self, _: taught.append(self._teacher_classes) or {"agreement": 0.5})
    boosted(workplace, *TWO, "--holdout", "0.5", settings=weighed("entropy"))
    chosen = BoostRecipe(teacher_weights="entropy", temperature=4.0)
    teachers = [Teacher(tiny_backbone("tiny-teacher", seed), NAMES, "a photo of a {}.") for seed in (1, 2)]
    files = find_images(workplace / "images").files
    pixels = Views.as_served(files, 32, tiny_backbone().preprocess).load(range(len(files)), 0)
    classes = joint_logits([teacher.logits(pixels) for teacher in teachers], chosen).argmax(1)
    _, held_out = hold_out(len(files), 0.5, chosen.seed)
    assert torch.equal(taught[0], classes[held_out])


def test_a_run_with_two_teachers_resumes_but_not_with_one_of_them(workplace, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("training.boost_run.export_bundle", lambda *_, **__: 1 / 0)
        assert isinstance(caspl_boost(workplace, *TWO, "--checkpoint-every", "2").exception, ZeroDivisionError)
    other = caspl_boost(workplace, "--teacher", "tiny-teacher", "--checkpoint-every", "2")
    assert other.exit_code == 1
    assert "teacher differ" in message(other)
    result, _ = boosted(workplace, *TWO, "--checkpoint-every", "2")
    assert "resuming after step 4 of 4" in message(result)


def test_a_teacher_bundle_belongs_to_the_teacher_of_its_backbone(workplace):
    second = tiny_backbone("tiny-teacher", 2)
    data = random_bundle("demo", NAMES, backbone=second, image_boost=(2, 2), text_boost=(2, 2))
    (workplace / "teacher.safetensors").write_bytes(data)
    _, bundle = boosted(workplace, *TWO, "--teacher-bundle", str(workplace / "teacher.safetensors"))
    digest = read_bundle(data).digest
    assert bundle.manifest.provenance.teacher == {"teachers": [identity(1), identity(2) | {"bundle": digest}]}


def test_a_teacher_bundle_without_a_teacher_is_an_error(workplace):
    data = random_bundle("demo", NAMES, backbone=tiny_backbone("tiny-teacher", 7))
    (workplace / "teacher.safetensors").write_bytes(data)
    result = caspl_boost(workplace, *TWO, "--teacher-bundle", str(workplace / "teacher.safetensors"))
    assert result.exit_code == 1
    assert "No teacher is left for the teacher bundle of domain 'demo', made for tiny-teacher random:7" in message(
        result
    )
    assert not (workplace / "demo.safetensors").exists()


def test_promptkd_takes_the_text_features_of_the_first_teacher(workplace):
    result, bundle = boosted(workplace, *TWO, settings=[*SETTINGS, "distillation=promptkd"])
    expected = Teacher(tiny_backbone("tiny-teacher", 1), NAMES, "a photo of a {}.").text_features_KE
    assert np.array_equal(bundle.tensors["text.features"], expected.numpy())
    assert "the student has the text features of the first one, tiny-teacher" in message(result)


def test_domains_with_their_own_classes_share_two_teachers(workplace):
    (workplace / "images").rename(workplace / "zoo")
    (workplace / "ponds").mkdir()
    for index in range(4):
        (workplace / "zoo" / f"{index}.png").rename(workplace / "ponds" / f"{index}.png")
    (workplace / "ponds.txt").write_text("frog\nnewt\n")
    arguments = ["--domain", "shared", "--out", str(workplace / "shared.safetensors"), "--backbone", "tiny"]
    for name, classes in (("ponds", "ponds.txt"), ("zoo", "classes.txt")):
        arguments += ["--images", f"{name}={workplace / name}", "--classes", f"{name}={workplace / classes}"]
    for setting in weighed("agreement"):
        arguments += ["--set", setting]
    result = CliRunner().invoke(boost_app, [*arguments, *TWO, "--random-weights", "--keep-worse", "--json"])
    assert result.exit_code == 0, result.output
    bundle = read_bundle((workplace / "shared.safetensors").read_bytes())
    assert [spec.name for spec in bundle.manifest.classes] == ["frog", "newt", "cat", "dog"]
    assert "held_out_agreement_before" in json.loads(result.stdout)


@pytest.mark.parametrize("option", ["--teacher-pretrained", "--teacher-preprocess-of"])
def test_options_of_teachers_are_given_for_each_of_them(workplace, option):
    result = caspl_boost(workplace, *TWO, option, "openai")
    assert result.exit_code == 2
    assert "1 for 2 teachers (tiny-teacher, tiny-teacher); pass one for each" in message(result)


def test_an_empty_value_is_a_teacher_without_it(workplace):
    options = [*TWO, "--teacher-pretrained", "", "--teacher-pretrained", ""]
    _, bundle = boosted(workplace, *options)
    assert bundle.manifest.provenance.teacher == {"teachers": [identity(1), identity(2)]}


def test_weights_without_several_teachers_are_an_error(workplace):
    result = caspl_boost(workplace, "--teacher", "tiny-teacher", settings=weighed("entropy"))
    assert result.exit_code == 1
    assert "teacher_weights=entropy weighs several teachers, and there is one" in message(result)


def test_a_teacher_given_twice_is_an_error():
    with pytest.raises(BackbonePairError, match="Teachers 1 and 3 are the same model"):
        check_teachers(["sha256:a", "sha256:b", "sha256:a"], BoostRecipe())
