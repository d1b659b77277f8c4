"""`caspl export`: one model file with its labels and metadata, or an error and no file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

from caspl import Classifier, exporting
from caspl.export_command import export_app
from prompt_store.store import Store
from prompted_clip.backbone import load_backbone
from prompted_clip.errors import ExportError
from prompted_clip.model_files import run_model
from service.demo.files import ASSETS
from tests.stacks import random_bundle

BUNDLE = (ASSETS / "bundles" / "satellite.safetensors").read_bytes()


@pytest.fixture(scope="module")
def student():
    return load_backbone("demo-student")


@pytest.fixture
def store(quick_path):
    """A store with the live domain `satellite`."""
    opened = Store.open(quick_path / "store")
    opened.add("satellite", BUNDLE)
    opened.activate("satellite", 1)
    return opened


@pytest.fixture
def run(quick_path, store, monkeypatch):
    """Runs the command in an empty folder; returns its result and the names of the files there."""
    folder = quick_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def invoke(*arguments):
        done = CliRunner().invoke(
            export_app, [*map(str, arguments), "--store", str(store.root)], catch_exceptions=False
        )
        return done, sorted(path.name for path in folder.iterdir())

    return invoke


@pytest.fixture
def without_conversion(monkeypatch):
    """The content of the model file is `b"model"`."""
    monkeypatch.setattr(exporting, "trace", lambda *_: None)
    monkeypatch.setattr(exporting, "to_onnx", lambda *_, **__: b"model")


def test_the_live_version_becomes_a_model_with_its_labels_and_metadata(run, tmp_path):
    done, files = run("satellite")

    assert done.exit_code == 0, done.stderr
    assert files == ["satellite.json", "satellite.labels.txt", "satellite.onnx"]
    metadata = json.loads(Path("satellite.json").read_text(encoding="utf-8"))
    classifier = Classifier("demo-student", bundles=[BUNDLE], device="cpu")
    classes = list(classifier.domains["satellite"])
    assert (metadata["domain"], metadata["version"], metadata["classes"]) == ("satellite", 1, classes)
    assert Path("satellite.labels.txt").read_text(encoding="utf-8").splitlines() == classes
    assert metadata["preprocess"] == {"image_size": 64, "resize_mode": "shortest", "interpolation": "bicubic"}
    assert metadata["input"]["shape"] == ["batch", 3, 64, 64]
    assert metadata["digest"] in done.stdout
    session = onnxruntime.InferenceSession("satellite.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["caspl"]) == metadata
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (probabilities,) = session.run(None, {"pixels": image.transpose(2, 0, 1)[None]})
    (expected,) = classifier.classify([image], top_k=80)
    assert {one.class_id: one.probability for one in expected.predictions} == pytest.approx(
        dict(enumerate(probabilities[0].tolist())), abs=1e-5
    )


@pytest.mark.slow
def test_openvino_with_a_fixed_batch_float_pixels_embeddings_and_an_older_version(run, store, student):
    newer = random_bundle("satellite", backbone=student)
    store.add("satellite", newer)
    store.activate("satellite", 2)

    done, files = run(
        *("satellite", "--format", "openvino", "--out", "models/old.xml", "--version", "1", "--batch", "2"),
        *("--input", "float32", "--embedding", "--json"),
    )

    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert files == ["models"]
    assert result["files"] == [f"models/old{suffix}" for suffix in (".labels.txt", ".json", ".bin", ".xml")]
    assert (result["version"], result["input"]["type"]) == (1, "float32")
    assert result["outputs"] == {"probabilities": [2, 80], "embedding": [2, student.embed_dim]}
    assert result["max_difference"] < 1e-5
    contents = {suffix: Path(f"models/old{suffix}").read_bytes() for suffix in (".xml", ".bin")}
    probabilities, embeddings = run_model(contents, np.full((2, 3, 64, 64), 128, np.float32))
    assert probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.slow
def test_a_calibrated_domain_exports_its_temperature_and_thresholds(run, store, student):
    calibration = {"temperature": 2.5, "abstain": {"0.05": 0.4}}
    store.add(
        "shelf", random_bundle("shelf", backbone=student, head="class", head_input="unit", calibration=calibration)
    )

    done, _ = run("shelf", "--version", "1", "--json", "--quiet")

    result = json.loads(done.stdout)
    assert (result["folded"]["temperature"], result["abstain"]) == (2.5, {"0.05": 0.4})
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flowers"], "No such domain in this store"),
        (["satellite", "--version", "7"], "Version 7 does not exist or was removed"),
        (["satellite", "--out", "satellite.bin"], "--out must end in .onnx for --format onnx, found 'satellite.bin'"),
        (["satellite", "--out", "a.onnx", "--format", "openvino"], "--out must end in .xml for --format openvino"),
        (["idle"], "Domain 'idle' has no live version; pass --version (versions: 1)"),
        (["cocoop", "--version", "1"], "Domain 'cocoop' has a conditional head (CoCoOp)"),
        (["satellite", "--backbone", "ViT-B-32", "--random-weights"], "was made for demo-student with fingerprint"),
    ],
)
def test_a_failed_export_gives_the_reason_and_leaves_no_file(run, store, student, arguments, message):
    store.add("idle", random_bundle("idle", backbone=student))
    store.add("cocoop", random_bundle("cocoop", backbone=student, head="conditional", text_adapt=(1, 3)))

    done, files = run(*arguments)

    assert done.exit_code == 1
    assert message in done.stderr
    assert files == []


def test_a_store_that_does_not_exist_is_not_created(tmp_path):
    done = CliRunner().invoke(export_app, ["satellite", "--store", str(tmp_path / "none")])

    assert (done.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "No store at this path" in done.stderr


@pytest.mark.parametrize(("missing", "install"), [("onnxscript", "export"), ("openvino", "export,openvino")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(run, monkeypatch, missing, install):
    monkeypatch.setattr("caspl.export_command.find_spec", lambda name: None if name == missing else name)

    done, files = run("satellite", "--format", "openvino")

    assert (done.exit_code, files) == (1, [])
    assert f'needs {missing}: pip install "caspl-serve[{install}]"' in done.stderr


def test_existing_files_are_kept_without_force(run):
    Path("satellite.json").write_text("mine")

    done, files = run("satellite")

    assert (done.exit_code, files) == (1, ["satellite.json"])
    assert "Exists already: satellite.json. Choose another --out, or pass --force" in done.stderr
    assert Path("satellite.json").read_text(encoding="utf-8") == "mine"


def test_force_replaces_them(run, without_conversion, monkeypatch):
    monkeypatch.setattr(exporting, "largest_difference", lambda *_: 0.0)
    Path("satellite.json").write_text("mine")

    done, files = run("satellite", "--force")

    assert (done.exit_code, len(files)) == (0, 3)
    assert Path("satellite.onnx").read_bytes() == b"model"
    assert json.loads(Path("satellite.json").read_text(encoding="utf-8"))["domain"] == "satellite"


def test_a_model_that_answers_differently_is_not_written(run, without_conversion, monkeypatch):
    monkeypatch.setattr(exporting, "run_model", lambda files, pixels: [np.full((3, 80), 0.5, np.float32)])

    done, files = run("satellite")

    assert (done.exit_code, files) == (1, [])
    assert "file's outputs differ from torch's by 0.5 and a factor of" in done.stderr
    assert "more than 0.0001 or 1.01; nothing was written" in done.stderr


@pytest.fixture(scope="module")
def folded(student):
    stack = exporting.PromptedClip(student).load_stack(exporting.read_bundle(BUNDLE))
    return exporting.FoldedClassifier(student, stack)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p + 2e-4, r"by 0\.0002 and"),
        (lambda p: np.where(p < 1e-3, 1.1 * p, p), r"a factor of 1\.1,"),
        (lambda p: p * np.nan, "by nan"),
    ],
    ids=["large", "small", "not a number"],
)
def test_differences_of_large_and_small_probabilities_are_found(folded, monkeypatch, change, message):
    probabilities = folded(folded.example("uint8", 3))[0].detach().numpy()
    monkeypatch.setattr(exporting, "run_model", lambda files, pixels: [change(probabilities)])

    with pytest.raises(ExportError, match=message):
        exporting.largest_difference(folded, {}, exporting.ExportOptions())


def test_rounding_is_accepted(folded, monkeypatch):
    probabilities = folded(folded.example("uint8", 3))[0].detach().numpy()
    monkeypatch.setattr(exporting, "run_model", lambda files, pixels: [probabilities * np.float32(1 + 1e-5)])

    assert 0 < exporting.largest_difference(folded, {}, exporting.ExportOptions()) < 1e-5


def test_the_names_of_the_files_are_synced_after_the_last_rename(tmp_path, monkeypatch):
    contents = {tmp_path / "model.json": b"1", tmp_path / "model.onnx": b"2"}
    synced = []

    def note(fd):
        synced.append((str(Path(f"/proc/self/fd/{fd}").readlink()), all(path.exists() for path in contents)))

    monkeypatch.setattr(os, "fsync", note)
    exporting.write_all(contents)
    assert synced[-1] == (str(tmp_path), True)


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        exporting.write_all({tmp_path / "model.json": b"new", target: b"new"})

    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"old"


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(run, store):
    done, _ = run("satellite", "--format", "openvino", "--out", "here/satellite.xml")
    command = [
        sys.executable,
        "-P",
        "-m",
        "caspl",
        "export",
        "satellite",
        "--format",
        "openvino",
        "--store",
        store.root,
    ]
    subprocess.run([*command, "--out", "there/satellite.xml"], check=True, capture_output=True)

    here, there = ({path.name: path.read_bytes() for path in Path(folder).iterdir()} for folder in ("here", "there"))
    assert done.exit_code == 0
    assert len(here) == 4
    assert here == there
