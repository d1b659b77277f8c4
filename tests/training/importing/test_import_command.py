"""`caspl import`, from the folder of a run to a bundle."""

import json

import pytest
import torch
from typer.testing import CliRunner

from prompt_store.bundle import read_bundle
from prompt_store.header import MAX_BUNDLE_BYTES
from tests.stacks import random_bundle
from tests.tiny import register_tiny_models
from tests.training.importing.foreign import CLASSES, Writer, save_dassl
from training.importing.command import Method, NamePosition, import_app
from training.importing.methods import IMPORTERS


@pytest.fixture
def workplace(tmp_path):
    register_tiny_models()
    (tmp_path / "classes.txt").write_text("cat\ndog\nstriped_red_tulip\n")
    return tmp_path


def caspl_import(folder, checkpoint, method, *extra, classes=True):
    arguments = [str(folder / checkpoint), "--method", method, "--domain", "demo", "--backbone", "tiny"]
    arguments += ["--random-weights", "--device", "cpu", "--out", str(folder / "demo.safetensors")]
    arguments += ["--classes", str(folder / "classes.txt")] if classes else []
    return CliRunner().invoke(import_app, [*arguments, *extra])


def one_line(text):
    return " ".join(text.split())


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple", "ivlp", "promptsrc"])
def test_a_run_folder_is_imported_to_a_bundle_with_provenance(workplace, method):
    folder = workplace / "run" / IMPORTERS[method].layout.model_name
    state = getattr(Writer(), method)()
    save_dassl(folder / "model.pth.tar-10", state, epoch=10)
    newest = save_dassl(folder / "model.pth.tar-50", state, epoch=50)
    result = caspl_import(workplace, "run", method, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    bundle = read_bundle((workplace / "demo.safetensors").read_bytes())
    assert report["checkpoint"] == str(newest)
    assert report["epoch"] == 50
    assert report["digest"] == bundle.digest
    assert [spec.name for spec in bundle.manifest.classes] == list(CLASSES)
    provenance = bundle.manifest.provenance
    assert (provenance.method, provenance.phase) == (method, "adapt")
    assert provenance.recipe["imported_from"] == "model.pth.tar-50"
    assert provenance.recipe["epoch"] == 50
    assert provenance.data_digests["checkpoint"].startswith("sha256:")


def test_class_names_can_be_passed_one_by_one(workplace):
    save_dassl(workplace / "model.pth.tar-1", Writer().coop())
    names = [word for name in ("cat", "dog", "striped_red_tulip") for word in ("--class", name)]
    assert caspl_import(workplace, "model.pth.tar-1", "coop", *names, classes=False).exit_code == 0
    bundle = read_bundle((workplace / "demo.safetensors").read_bytes())
    assert [spec.name for spec in bundle.manifest.classes] == list(CLASSES)


def test_duplicate_class_names_are_rejected_before_loading_a_backbone(workplace):
    save_dassl(workplace / "model.pth.tar-1", Writer().coop())
    names = ["--class", "red_tulip", "--class", "Red  tulip", "--backbone", "ViT-Z-16"]
    result = caspl_import(workplace, "model.pth.tar-1", "coop", *names, classes=False)
    assert result.exit_code == 1
    assert "duplicate class names 'red_tulip' and 'Red  tulip'" in result.stderr


def test_a_boosting_bundle_is_read_only_up_to_the_size_limit(workplace):
    save_dassl(workplace / "model.pth.tar-1", Writer().coop())
    huge = workplace / "huge.safetensors"
    with huge.open("wb") as file:
        file.truncate(MAX_BUNDLE_BYTES + 1000)  # sparse
    result = caspl_import(workplace, "model.pth.tar-1", "coop", "--boost", str(huge))
    assert result.exit_code == 1
    assert f"has {MAX_BUNDLE_BYTES + 1} bytes; the limit is {MAX_BUNDLE_BYTES}" in one_line(result.stderr)


def test_prompts_can_be_imported_on_boosting_prompts(workplace):
    boost = workplace / "boost.safetensors"
    boost.write_bytes(random_bundle(image_boost=(2, 3), text_boost=(1, 2)))
    save_dassl(workplace / "model.pth.tar-1", Writer().maple())
    result = caspl_import(workplace, "model.pth.tar-1", "maple", "--boost", str(boost))
    assert result.exit_code == 0, result.output
    bundle = read_bundle((workplace / "demo.safetensors").read_bytes())
    given = read_bundle(boost.read_bytes())
    assert (bundle.tensors["image.boost"] == given.tensors["image.boost"]).all()
    assert bundle.manifest.provenance.data_digests["boost"] == given.digest


def test_the_result_is_a_table_with_notes_on_stderr(workplace):
    save_dassl(workplace / "model.pth.tar-1", Writer().coop(words=False))
    result = caspl_import(workplace, "model.pth.tar-1", "coop")
    assert "imported" in result.stdout
    assert "[1, 4]" in result.stdout
    assert "note: The checkpoint contains no embeddings" in one_line(result.stderr)


def test_quick_gelu_changes_the_activation_of_the_backbone(workplace):
    save_dassl(workplace / "model.pth.tar-1", Writer().coop())
    result = caspl_import(workplace, "model.pth.tar-1", "coop", "--quick-gelu", "--json")
    assert json.loads(result.stdout)["notes"] == []


def test_promptkd_reads_its_teachers_features_from_a_file(workplace):
    save_dassl(workplace / "model.pth.tar-1", Writer().promptkd())
    torch.save(torch.eye(3, 10), workplace / "features.pt")
    result = caspl_import(
        workplace, "model.pth.tar-1", "promptkd", "--text-features", str(workplace / "features.pt"), "--json"
    )
    assert result.exit_code == 0, result.output
    assert (
        "text_features" in read_bundle((workplace / "demo.safetensors").read_bytes()).manifest.provenance.data_digests
    )


@pytest.mark.parametrize(
    ("method", "extra", "message"),
    [
        ("maple", [], "Expected prompt_learner.ctx [tokens, text width]"),
        ("coop", ["--backbone", "ViT-Z-16"], "Unknown backbone 'ViT-Z-16'"),
        ("coop", ["--domain", "Not A Domain"], "Not a valid domain name"),
    ],
)
def test_a_failure_is_one_message_and_writes_no_bundle(workplace, method, extra, message):
    save_dassl(workplace / "model.pth.tar-1", Writer().coop())
    result = caspl_import(workplace, "model.pth.tar-1", method, *extra)
    assert result.exit_code == 1
    assert message in one_line(result.stderr)
    assert not (workplace / "demo.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "extra", "classes", "option"),
    [
        ("coop", [], False, "--classes"),
        ("coop", ["--class", "cat"], True, "--classes"),
        ("coop", ["--text", "a photo"], True, "--text"),
        ("coop", ["--text-features", __file__], True, "--text-features"),
        ("maple", ["--position", "middle"], True, "--position"),
        ("prompt-tuning", [], True, "--method"),
        ("coop", ["--boost", "nowhere.safetensors"], True, "--boost"),
        ("coop", ["--device", "gpu"], True, "--device"),
    ],
)
def test_usage_errors_are_reported_before_reading_files(workplace, method, extra, classes, option):
    result = caspl_import(workplace, "classes.txt", method, *extra, classes=classes)
    assert result.exit_code == 2
    assert option in result.stderr


def test_a_missing_checkpoint_is_a_usage_error(workplace):
    result = caspl_import(workplace, "none.pt", "coop")
    assert result.exit_code == 2
    assert "does not exist" in one_line(result.stderr.replace("│", " "))


def test_the_command_lists_exactly_the_importable_methods_and_positions():
    assert {method.value for method in Method} == set(IMPORTERS)
    assert {position.value for position in NamePosition} == {"end", "middle", "front"}
