"""A bundle in an S3 bucket, as an OCI image layout, against moto's server behind a proxy with faults."""

import json

import pytest

from prompt_store import digest_bytes
from prompt_store.errors import DigestMismatchError, LimitExceededError, PromptStoreError, RemoteError
from prompt_store.remotes.artifact import make_artifact
from prompt_store.remotes.modelpack import ARTIFACT_TYPE
from prompt_store.signing_keys import sign_bundle
from tests.prompt_store.keys import private_key
from tests.prompt_store.places import numbers
from tests.prompt_store.remotes.opening import opened
from tests.prompt_store.samples import sample_bundle

DATA, NEXT = sample_bundle(), sample_bundle(1)
SIGNATURES = [sign_bundle(digest_bytes(DATA), "flowers.safetensors", private_key(number)) for number in range(2)]


@pytest.fixture
def address(s3_place):
    s3_place.prefix = f"shared/flowers-{next(numbers)}/"
    return f"s3://{s3_place.bucket}/{s3_place.prefix[:-1]}"


def push(address, data=DATA, signatures=()):
    return opened(address).push(make_artifact(data, signatures)[0])


def refusal(work, kind=RemoteError):
    with pytest.raises(kind) as refused:
        work()
    assert str(refused.value).isprintable()
    assert "secret" not in str(refused.value)
    return refused.value.code


def blob_name(digest):
    return f"blobs/{digest.replace(':', '/')}"


def test_a_signed_bundle_comes_back_as_it_was_pushed(address):
    artifact, _ = make_artifact(DATA, SIGNATURES)
    remote = opened(address)
    pinned = remote.push(artifact)
    assert remote.pull() == artifact
    assert opened(pinned).pull() == artifact
    assert pinned == f"{address}@{remote.newest()}"


def test_the_objects_are_an_oci_image_layout_whose_first_layer_is_the_bundle(address, s3_place):
    pinned = push(address)
    assert json.loads(s3_place.get("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(s3_place.get("index.json"))["manifests"]
    assert pinned.endswith(entry["digest"])
    assert entry["artifactType"] == ARTIFACT_TYPE
    manifest = json.loads(s3_place.get(blob_name(entry["digest"])))
    assert s3_place.get(blob_name(manifest["layers"][0]["digest"])) == DATA
    named = {layer["digest"] for layer in [manifest["config"], *manifest["layers"], entry]}
    assert set(s3_place.names("blobs/")) == {blob_name(digest) for digest in named}


def test_another_bundle_replaces_the_first_which_stays_under_its_digest(address):
    first = push(address)
    assert push(address) == first
    assert push(address, NEXT) != first
    assert opened(address).pull().bundle == NEXT
    assert opened(first).pull().bundle == DATA
    assert opened(first).newest() == first.partition("@")[2]


def test_a_push_sends_no_blob_twice(address, s3_place, proxy):
    push(address)
    proxy.requests.clear()
    push(address)
    assert [target.rpartition("/")[2] for method, target in proxy.requests if method == "PUT"] == [
        "oci-layout",
        "index.json",
    ]


@pytest.mark.parametrize("n_written", range(6))
def test_a_push_that_is_interrupted_leaves_the_former_bundle(address, proxy, n_written):
    push(address)
    n_left = n_written

    def fault(method, key):
        nonlocal n_left
        n_left -= method == "PUT"
        return "denied" if method == "PUT" and n_left < 0 else None

    proxy.fault = fault
    assert refusal(lambda: push(address, NEXT, ())) == "remote_unauthorized"
    proxy.fault = lambda method, key: None
    assert opened(address).pull().bundle == DATA
    push(address, NEXT)
    assert opened(address).pull().bundle == NEXT


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("refuse", "remote_unreachable"),
        ("503", "remote_unreachable"),
        ("denied", "remote_unauthorized"),
        ("skewed", "remote_failed"),
        ("half", "remote_unreachable"),
    ],
)
def test_a_bucket_that_fails_is_an_error_with_the_next_step(address, proxy, fault, code):
    push(address)
    proxy.fault = lambda method, key: fault
    assert refusal(lambda: opened(address).newest()) == code
    assert refusal(lambda: opened(address).pull()) == code


def test_an_artifact_that_does_not_exist_is_not_found(address, s3_place):
    pinned = push(address)
    missing = (f"{address}/other", f"s3://no-such-{s3_place.bucket}/x", f"{address}@sha256:{'0' * 64}")
    for text in missing:
        assert refusal(lambda text=text: opened(text).pull()) == "remote_not_found", text
    s3_place.remove(blob_name(digest_bytes(DATA)))
    assert refusal(lambda: opened(pinned).pull()) == "remote_not_found"


def test_a_part_with_other_bytes_is_refused(address, s3_place):
    manifest = push(address, signatures=SIGNATURES).partition("@")[2]
    for digest in (digest_bytes(DATA), digest_bytes(SIGNATURES[1]), manifest):
        kept = s3_place.get(blob_name(digest))
        s3_place.put(blob_name(digest), bytes([kept[0] ^ 1]) + kept[1:])
        assert refusal(lambda: opened(address).pull(), DigestMismatchError) == "digest_mismatch"
        s3_place.put(blob_name(digest), kept)
    assert opened(address).pull().bundle == DATA


def test_a_part_that_is_larger_than_stated_is_not_read_to_its_end(address, s3_place):
    push(address)
    s3_place.put(blob_name(digest_bytes(DATA)), DATA + b"x")
    assert refusal(lambda: opened(address).pull(), LimitExceededError) == "too_large"
    s3_place.put("index.json", b" " * (4 * 2**20 + 1))
    assert refusal(lambda: opened(address).newest(), LimitExceededError) == "too_large"


@pytest.mark.parametrize(
    "index",
    [
        b"no json",
        b"[]",
        b'{"schemaVersion": 2, "manifests": []}',
        b'{"schemaVersion": 1, "manifests": []}',
        b'{"schemaVersion": 2, "manifests": [{"mediaType": "a/b", "size": 1, "digest": "sha256:' + b"0" * 64 + b'"}]}',
        b'{"schemaVersion": 2, "manifests": [{"mediaType": "a/b", "size": 1, "digest": "sha256:../../etc"}]}',
    ],
)
def test_an_index_without_one_bundle_is_refused(address, s3_place, index):
    s3_place.put("index.json", index)
    assert refusal(lambda: opened(address).newest()) == "media_type_unknown"


def test_a_prompt_store_is_not_overwritten(s3_place):
    s3_place.open().add("flowers", DATA)
    names = s3_place.names()
    assert refusal(lambda: push(s3_place.address, NEXT)) == "repository_taken"
    assert s3_place.names() == names


def test_a_digest_cannot_be_pushed_to(address):
    pinned = push(address)
    assert refusal(lambda: push(pinned)) == "address_invalid"


def test_plain_http_to_another_machine_is_refused_unless_allowed(address, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.example")
    assert refusal(lambda: opened(address)) == "remote_insecure"
    opened(address, plain_http=True)


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3://B",
        "s3://bucket/../x",
        "s3://bucket/a b",
        "s3://key:password@bucket/x",
        "s3://bucket/x@sha256:12",
        "s3://bucket/x@latest",
        f"s3://bucket/{'x' * 600}",
    ],
)
def test_an_invalid_address_is_refused_without_its_password(text):
    with pytest.raises(PromptStoreError) as refused:
        opened(text)
    assert refused.value.code == "address_invalid"
    assert "password@" not in str(refused.value)
