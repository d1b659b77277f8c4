"""The ML-BOM of a bundle: valid CycloneDX, and complete."""

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from typer.testing import CliRunner

from prompt_store import digest_bytes, read_bundle
from prompt_store.bom import bundle_bom
from prompt_store.cli import bundle_app
from service.demo.files import ASSETS
from tests.prompt_store.samples import manifest_fields, sample_bundle

DATA_DIGEST = "sha256:" + "d" * 64
VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)
MADE = manifest_fields()["provenance"] | {
    "data_digests": {"labels.csv": DATA_DIGEST, "images": "not a digest"},
    "teacher": {"arch": "ViT-L-14", "pretrained": "openai", "fingerprint": "sha256:" + "e" * 64},
    "metrics": {"base": {"accuracy": 0.875}, "H": 0.5, "new": None},
    "recipe": {"steps": 10, "rates": [0.1, 0.01], "optimizer": {"name": "sgd"}},
}


def bom_of(data):
    return bundle_bom(read_bundle(data), "flowers.safetensors", len(data))


@pytest.mark.parametrize("data", [sample_bundle(), sample_bundle(provenance=MADE)], ids=["plain", "everything"])
def test_the_document_is_valid(data):
    assert VALIDATOR.validate_str(json.dumps(bom_of(data))) is None


def test_the_validator_of_this_test_finds_faults():
    assert VALIDATOR.validate_str(json.dumps(bom_of(sample_bundle()) | {"extra": 1})) is not None


@pytest.mark.parametrize("path", sorted((ASSETS / "bundles").glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_documents_of_the_demo_are_valid(path):
    assert VALIDATOR.validate_str(json.dumps(bom_of(path.read_bytes()))) is None


def test_the_document_names_hashes_backbone_teacher_data_metrics_and_recipe():
    data = sample_bundle(provenance=MADE)
    bom = bom_of(data)
    model, digest = bom["metadata"]["component"], digest_bytes(data)
    components = {component["bom-ref"]: component for component in bom["components"]}
    properties = {(one["name"], one["value"]) for one in model["properties"]}
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]

    assert (model["type"], model["name"]) == ("machine-learning-model", "flowers")
    assert model["hashes"] == [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]
    backbone = "backbone:sha256:" + "ab" * 32
    assert set(components) == {backbone, "teacher", "data:labels.csv", "data:images"}
    assert (components[backbone]["name"], components[backbone]["version"]) == ("ViT-B-16", "openai")
    assert components["teacher"]["name"] == "ViT-L-14"
    assert components["data:labels.csv"]["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]
    assert set(bom["dependencies"][0]["dependsOn"]) == set(components)
    assert metrics == [{"type": "H", "value": "0.5"}, {"type": "base.accuracy", "value": "0.875"}]
    assert {("caspl:recipe.optimizer.name", "sgd"), ("caspl:recipe.rates", "[0.1, 0.01]")} <= properties
    assert {("caspl:method", "caspl"), ("caspl:seed", "1"), ("caspl:class", "daisy")} <= properties


def test_each_of_several_teachers_is_a_component():
    teachers = [MADE["teacher"], {"arch": "ViT-H-14", "pretrained": "laion2b"}]
    bom = bom_of(sample_bundle(provenance=MADE | {"teacher": {"teachers": teachers}}))
    found = {one["bom-ref"]: one["name"] for one in bom["components"] if one["bom-ref"].startswith("teacher")}
    assert found == {"teacher": "ViT-L-14", "teacher:2": "ViT-H-14"}
    assert VALIDATOR.validate_str(json.dumps(bom)) is None


@pytest.mark.parametrize("teachers", [[], "ViT-L-14", [1], None])
def test_a_list_of_teachers_of_another_shape_is_a_property_of_the_teacher(teachers):
    bom = bom_of(sample_bundle(provenance=MADE | {"teacher": {"teachers": teachers}}))
    assert [one["name"] for one in bom["components"] if one["bom-ref"].startswith("teacher")] == ["teacher"]
    assert VALIDATOR.validate_str(json.dumps(bom)) is None


def test_the_same_bundle_gives_the_same_document_and_another_bundle_another_number():
    assert bom_of(sample_bundle()) == bom_of(sample_bundle())
    assert bom_of(sample_bundle())["serialNumber"] != bom_of(sample_bundle(1))["serialNumber"]


def test_the_command_prints_or_writes_the_document(tmp_path):
    file, output = tmp_path / "flowers.safetensors", tmp_path / "flowers.cdx.json"
    file.write_bytes(sample_bundle())

    printed = CliRunner().invoke(bundle_app, ["bom", str(file)])
    written = CliRunner().invoke(bundle_app, ["bom", str(file), "--output", str(output)])
    assert (printed.exit_code, written.exit_code, written.stdout) == (0, 0, "")
    assert json.loads(printed.stdout) == json.loads(output.read_text()) == bom_of(sample_bundle())
    file.write_bytes(b"no bundle")
    assert CliRunner().invoke(bundle_app, ["bom", str(file)]).exit_code == 3
