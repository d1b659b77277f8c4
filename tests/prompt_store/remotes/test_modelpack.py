"""The manifest of a bundle in a registry."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_store import PromptStoreError, digest_bytes
from prompt_store.errors import LimitExceededError, RemoteError
from prompt_store.remotes.artifact import make_artifact
from prompt_store.remotes.modelpack import read_manifest, write_manifest
from prompt_store.signing_keys import sign_bundle
from tests.prompt_store.keys import private_key
from tests.prompt_store.samples import sample_bundle

DATA = sample_bundle()
SIGNATURES = [sign_bundle(digest_bytes(DATA), "flowers.safetensors", private_key(number)) for number in (0, 1)]


def manifest_of(data=DATA, signatures=SIGNATURES):
    artifact, bundle = make_artifact(data, signatures)
    return write_manifest(artifact, bundle)


def changed(change):
    fields = json.loads(manifest_of()[0])
    change(fields)
    return json.dumps(fields).encode()


def test_the_bundle_is_one_weight_layer_with_the_bundles_own_digest():
    manifest, blobs = manifest_of()
    fields = json.loads(manifest)
    types = [layer["mediaType"].rpartition(".v1.")[0].rpartition(".")[2] for layer in fields["layers"]]
    names = [layer["annotations"]["org.cncf.model.filepath"] for layer in fields["layers"]]
    assert fields["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert types == ["weight", "doc", "doc", "doc"]
    assert names == [
        "flowers.safetensors", "flowers.safetensors.sig", "flowers.safetensors.2.sig", "flowers.cdx.json",
    ]  # fmt: skip
    assert fields["layers"][0]["digest"] == digest_bytes(DATA)
    assert blobs[digest_bytes(DATA)] == DATA
    assert fields["annotations"]["caspl.domain"] == "flowers"


def test_the_config_lists_the_layers_as_modelpack_demands():
    manifest, blobs = manifest_of()
    fields = json.loads(manifest)
    config = json.loads(blobs[fields["config"]["digest"]])
    assert set(config) == {"descriptor", "config", "modelfs"}
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in fields["layers"]]}
    assert config["config"] == {"architecture": "ViT-B-16", "format": "safetensors", "precision": "float32"}


def test_the_same_bundle_has_the_same_manifest_and_sizes_are_those_of_the_blobs():
    assert manifest_of() == manifest_of()
    manifest, blobs = manifest_of()
    layers = json.loads(manifest)["layers"]
    assert [layer["size"] for layer in layers] == [len(blobs[layer["digest"]]) for layer in layers]


def test_a_written_manifest_is_read_with_all_its_layers():
    layers = read_manifest(manifest_of()[0])
    assert layers.bundle.digest == digest_bytes(DATA)
    assert [layer.digest for layer in layers.signatures] == [digest_bytes(signature) for signature in SIGNATURES]
    assert layers.bom is not None
    assert layers.others == ()


def test_further_documents_are_named_and_not_an_error():
    def add_readme(fields):
        name = {"org.cncf.model.filepath": "README.md"}
        fields["layers"].append(fields["layers"][-1] | {"annotations": name})

    assert read_manifest(changed(add_readme)).others == ("README.md",)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(artifactType="application/vnd.acme.rocket.v1"),
        lambda fields: fields.update(mediaType="application/vnd.oci.image.index.v1+json"),
        lambda fields: fields["config"].update(mediaType="application/vnd.oci.image.config.v1+json"),
        lambda fields: fields.pop("config"),
        lambda fields: fields["layers"][0].update(mediaType="application/vnd.oci.image.layer.v1.tar+gzip"),
        lambda fields: fields["layers"].append(fields["layers"][0]),
        lambda fields: fields["layers"].pop(0),
        lambda fields: fields.update(mediaType="x\x1b[31m"),
    ],
)
def test_another_kind_of_artifact_is_refused_by_its_media_type(change):
    with pytest.raises(RemoteError) as refused:
        read_manifest(changed(change))
    assert refused.value.code == "media_type_unknown"
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("layer", range(4))
def test_a_layer_beyond_its_limit_is_refused_before_it_is_downloaded(layer):
    with pytest.raises(LimitExceededError) as refused:
        read_manifest(changed(lambda fields: fields["layers"][layer].update(size=65 * 2**20)))
    assert refused.value.code == "too_large"


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(schemaVersion=1),
        lambda fields: fields.update(layers=None),
        lambda fields: fields["layers"][0].update(digest="sha256:../../etc/passwd"),
        lambda fields: fields["layers"][0].update(size=-1),
        lambda fields: fields["layers"][1].update(annotations={"org.cncf.model.filepath": 3}),
    ],
)
def test_an_invalid_manifest_is_refused(change):
    with pytest.raises(RemoteError) as refused:
        read_manifest(changed(change))
    assert refused.value.code == "remote_failed"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(["mediaType", "artifactType", "config", "layers", "annotations", "schemaVersion"]), json_values)
def test_no_value_of_a_field_breaks_the_parser(name, value):
    shown = ""
    try:
        read_manifest(changed(lambda fields: fields.update({name: value})))
    except PromptStoreError as error:
        shown = str(error)
    assert shown.isprintable()


@given(st.binary(max_size=100))
def test_no_bytes_break_the_parser(data):
    with pytest.raises(PromptStoreError):
        read_manifest(data)
