"""`caspl boost` for several domains, and from a start."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from tests.tiny import register_tiny_models, tiny_backbone
from training.boost_scores import HeldOutScores
from training.cli import boost_app

SETTINGS = ["image_tokens=2", "text_tokens=4", "epochs=2", "batch_size=4", "augmentation=none"]


@pytest.fixture
def workplace(tmp_path):
    """Two domains, `pets` of six images and `ponds` of four, which share a class."""
    register_tiny_models()
    rng = np.random.default_rng(0)
    for domain, n_images in (("pets", 6), ("ponds", 4)):
        (tmp_path / "all" / domain).mkdir(parents=True)
        for index in range(n_images):
            pixels = rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "all" / domain / f"{index}.png")
    (tmp_path / "pets.txt").write_text("cat\ndog\nnewt\n")
    (tmp_path / "ponds.txt").write_text("frog\nNewt\n")
    return tmp_path


def images(folder, *domains):
    return [word for name in domains for word in ("--images", f"{name}={folder / 'all' / name}")]


def classes(folder, *domains):
    return [word for name in domains for word in ("--classes", f"{name}={folder / name}.txt")]


def caspl_boost(folder, *options, settings=SETTINGS, domain="shared"):
    arguments = ["--domain", domain, "--out", str(folder / f"{domain}.safetensors"), "--backbone", "tiny"]
    arguments += ["--teacher", "tiny-teacher", "--random-weights", "--device", "cpu", "--json"]
    for setting in settings:
        arguments += ["--set", setting]
    return CliRunner().invoke(boost_app, [*arguments, *options])


def boosted(folder, *options, **more):
    """The bundle of a run, which may be worse than the plain model."""
    result = caspl_boost(folder, "--keep-worse", *options, **more)
    assert result.exit_code == 0, result.output
    return read_bundle((folder / f"{more.get('domain', 'shared')}.safetensors").read_bytes())


def both(folder):
    return [*images(folder, "pets", "ponds"), *classes(folder, "pets", "ponds")]


def message(result):
    return " ".join(result.stderr.replace("│", " ").split())


def test_one_bundle_has_the_classes_of_all_domains_and_names_them_in_its_provenance(workplace):
    bundle = boosted(workplace, *both(workplace))
    assert [spec.name for spec in bundle.manifest.classes] == ["cat", "dog", "newt", "frog"]
    provenance = bundle.manifest.provenance
    assert set(provenance.data_digests) == {"images/pets", "classes/pets", "images/ponds", "classes/ponds"}
    assert provenance.metrics["n_images"] == 10
    facts = {"n_unreadable": 0, "teacher_template": "a photo of a {}."}
    assert provenance.metrics["domains"] == {"pets": {"n_images": 6} | facts, "ponds": {"n_images": 4} | facts}
    model = PromptedClip(tiny_backbone())
    stack = model.load_stack(bundle)
    again = model.with_labels(stack, stack.class_names)
    torch.testing.assert_close(again.text_features, stack.text_features, rtol=0, atol=1e-6)


def test_the_order_of_the_options_has_no_effect(workplace):
    first = boosted(workplace, *both(workplace))
    second = boosted(workplace, *images(workplace, "ponds", "pets"), *classes(workplace, "ponds", "pets"))
    assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_one_domain_with_a_name_gives_the_bundle_of_one_without(workplace):
    folder, names = workplace / "all" / "pets", workplace / "pets.txt"
    plain = boosted(workplace, "--images", str(folder), "--classes", str(names))
    named = boosted(workplace, *images(workplace, "pets"), *classes(workplace, "pets"))
    assert all(np.array_equal(plain.tensors[name], named.tensors[name]) for name in plain.tensors)
    first, second = (found.manifest.model_dump() for found in (plain, named))
    assert first["provenance"].pop("created")
    assert second["provenance"].pop("created")
    assert first == second


def test_domains_with_the_same_classes_train_as_one_folder_of_all_images(workplace):
    shared = ["--classes", str(workplace / "pets.txt"), "--holdout", "0"]
    settings = [*SETTINGS, "optimizer=sgd", "learning_rate=0.01"]
    together = boosted(workplace, "--images", str(workplace / "all"), *shared, settings=settings)
    apart = boosted(workplace, *images(workplace, "pets", "ponds"), *shared, settings=settings)
    for name in together.tensors:
        np.testing.assert_allclose(apart.tensors[name], together.tensors[name], rtol=0, atol=1e-4)
    assert together.manifest.classes == apart.manifest.classes


def test_a_data_set_and_a_folder_can_share_prompts_each_with_its_own_template(workplace):
    lines = [f"all/ponds/{index}.png,{'frog' if index % 2 else 'newt'},train" for index in range(4)]
    (workplace / "table.csv").write_text("\n".join(["path,label,split", *lines, ""]))
    options = [*images(workplace, "pets"), *classes(workplace, "pets"), "--data", f"ponds={workplace / 'table.csv'}"]
    facts = boosted(workplace, *options).manifest.provenance.metrics["domains"]
    assert facts["ponds"] == {"n_images": 4, "n_unreadable": 0, "teacher_template": "a photo of a {}."}
    chosen = [*SETTINGS, "teacher_template=a drawing of a {}."]
    facts = boosted(workplace, *options, settings=chosen).manifest.provenance.metrics["domains"]
    assert {found["teacher_template"] for found in facts.values()} == {"a drawing of a {}."}


def test_images_are_held_out_of_every_domain_and_each_is_reported(workplace):
    result = caspl_boost(workplace, "--keep-worse", *both(workplace))
    report = json.loads(result.stdout)
    assert report["n_held_out"] == 2
    for when in ("before", "best", "after"):
        each = [report[f"held_out_agreement_{name}_{when}"] for name in ("pets", "ponds")]
        assert report[f"held_out_agreement_{when}"] == pytest.approx(sum(each) / 2)
    assert "agreement_ponds" in result.stderr


def test_a_domain_that_became_worse_is_named(workplace, monkeypatch):
    left = iter([0.5, 0.5, *[0.9, 0.4] * 4])
    monkeypatch.setattr(HeldOutScores, "of", lambda self, logits: {"agreement": next(left)})
    result = caspl_boost(workplace, *both(workplace), settings=[*SETTINGS, "epochs=1"])
    assert result.exit_code == 0, result.output
    assert "Worse than before on held-out images of ponds (50.0% before, 40.0% after)." in message(result)


def test_an_interrupted_run_resumes_with_identical_prompts(workplace, monkeypatch):
    whole = boosted(workplace, *both(workplace))
    measure, left = HeldOutScores.of, iter([*[True] * 8, False])  # two domains before training, after steps 1, 2 and 3
    with monkeypatch.context() as patched:
        patched.setattr(HeldOutScores, "of", lambda self, logits: measure(self, logits) if next(left) else 1 / 0)
        caspl_boost(workplace, *both(workplace), "--keep-worse", "--checkpoint-every", "3")
    result = caspl_boost(workplace, *both(workplace), "--keep-worse", "--checkpoint-every", "3")
    assert "boosting shared: resuming after step 3 of 4" in result.stderr
    resumed = read_bundle((workplace / "shared.safetensors").read_bytes())
    assert all(np.array_equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)


def test_a_checkpoint_of_other_domains_does_not_resume(workplace, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("training.boost_run.export_bundle", lambda *_, **__: 1 / 0)
        caspl_boost(workplace, *both(workplace), "--keep-worse", "--checkpoint-every", "3")
    shutil.copytree(workplace / "all" / "pets", workplace / "all" / "ponies")
    (workplace / "ponies.txt").write_text("shire\n")
    options = [*both(workplace), *images(workplace, "ponies"), *classes(workplace, "ponies")]
    result = caspl_boost(workplace, *options)
    assert result.exit_code == 1
    assert "classes/ponies, images/ponies differ" in message(result)


def test_training_starts_from_the_prompts_of_a_bundle(workplace):
    shared = boosted(workplace, *both(workplace))
    options = ["--start", str(workplace / "shared.safetensors"), *images(workplace, "ponds")]
    still = [*SETTINGS, "epochs=1", "learning_rate=1e-12"]
    result = caspl_boost(
        workplace, *options, *classes(workplace, "ponds"), "--keep-worse", settings=still, domain="ponds"
    )
    assert result.exit_code == 0, result.output
    bundle = read_bundle((workplace / "ponds.safetensors").read_bytes())
    for name in ("image.boost", "text.boost"):
        np.testing.assert_allclose(bundle.tensors[name], shared.tensors[name], rtol=0, atol=1e-6)
    assert bundle.manifest.provenance.data_digests["start"] == shared.digest
    assert [spec.name for spec in bundle.manifest.classes] == ["frog", "Newt"]
    assert "Held-out images, prompts of the start: agreement" in result.stderr


def test_the_better_one_of_plain_student_and_start_has_to_be_exceeded(workplace, monkeypatch):
    boosted(workplace, *both(workplace))
    options = ["--start", str(workplace / "shared.safetensors"), *images(workplace, "ponds")]
    for before in ((0.7, 0.5), (0.5, 0.7)):
        left = iter([*before, 0.6, 0.6])
        monkeypatch.setattr(HeldOutScores, "of", lambda self, logits, left=left: {"agreement": next(left)})
        result = caspl_boost(workplace, *options, *classes(workplace, "ponds"), settings=[*SETTINGS, "epochs=1"])
        assert result.exit_code == 1, before
        assert "was 70.0% before training and 60.0% at best" in message(result)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--images", "{all}/pets", "--images", "{all}/ponds", "--classes", "{root}/pets.txt"], "need a name each"),
        (["--images", "pets={all}/pets"], "--images and --classes belong together"),
        (["--classes", "{root}/pets.txt"], "--images and --classes belong together"),
        ([], "either --images and --classes, or --data, is required"),
        (
            ["--images", "pets={all}/pets", "--images", "pets={all}/ponds", "--classes", "{root}/pets.txt"],
            "the domain 'pets' is given twice",
        ),
        (
            ["--images", "pets={all}/pets", "--images", "My_Pond={all}/ponds", "--classes", "{root}/pets.txt"],
            "'My_Pond' in",
        ),
        (
            ["--images", "pets={all}/pets", "--images", "ponds={all}/ponds", "--classes", "pets={root}/pets.txt"],
            "no class list for ponds; add ponds=FILE, or pass one FILE for all domains",
        ),
        (["--images", "pets={all}/pets", "--classes", "ponds={root}/ponds.txt"], "no class list for pets"),
        (
            [
                *("--images", "pets={all}/pets", "--classes", "pets={root}/pets.txt"),
                *("--classes", "ponds={root}/ponds.txt"),
            ],
            "no --images for ponds",
        ),
        (["--images", "pets={all}/none", "--classes", "{root}/pets.txt"], "does not exist"),
        (
            ["--images", "pets={all}/pets", "--classes", "{root}/pets.txt", "--data", "pets={all}"],
            "the domain 'pets' is in --images, too",
        ),
        (
            ["--images", "pets={all}/pets", "--classes", "{root}/pets.txt", "--root", "{root}"],
            "--root: only --data uses it",
        ),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(workplace, options, expected):
    named = [option.format(all=workplace / "all", root=workplace) for option in options]
    result = caspl_boost(workplace, *named)
    assert result.exit_code == 2, result.output
    assert expected in message(result)
    assert not list(workplace.glob("shared*"))


def test_a_folder_with_an_equals_sign_in_its_name_is_one_domain(workplace):
    folder = workplace / "year=2024"
    shutil.copytree(workplace / "all" / "pets", folder)
    bundle = boosted(workplace, "--images", str(folder), "--classes", str(workplace / "pets.txt"))
    assert set(bundle.manifest.provenance.data_digests) == {"images", "classes"}


def test_promptkd_of_several_domains_is_an_error_with_a_reason(workplace):
    result = caspl_boost(workplace, *both(workplace), settings=[*SETTINGS, "distillation=promptkd"])
    assert result.exit_code == 1
    assert "distillation=promptkd learns one domain" in message(result)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([*SETTINGS, "image_tokens=3"], "has 2 image tokens in 3 layers, the recipe 3 in 3"),
        ([*SETTINGS, "distillation=promptkd"], "promptkd cannot start from a bundle"),
    ],
)
def test_a_start_that_does_not_fit_is_an_error_and_writes_nothing(workplace, settings, expected):
    boosted(workplace, *both(workplace))
    options = ["--start", str(workplace / "shared.safetensors"), *images(workplace, "ponds")]
    result = caspl_boost(workplace, *options, *classes(workplace, "ponds"), settings=settings, domain="ponds")
    assert result.exit_code == 1
    assert expected in message(result)
    assert not (workplace / "ponds.safetensors").exists()
