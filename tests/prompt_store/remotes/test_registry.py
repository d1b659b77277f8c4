"""A registry, also one that misbehaves: every answer is checked."""

import pytest

from prompt_store import digest_bytes
from prompt_store.errors import DigestMismatchError, LimitExceededError, RemoteError
from prompt_store.remotes import transfer
from prompt_store.signing_keys import sign_bundle
from tests.prompt_store.keys import private_key
from tests.prompt_store.remotes.opening import opened
from tests.prompt_store.remotes.registries import OneArtifact, Uploads, pull, push, refusal
from tests.prompt_store.remotes.web import serving_web
from tests.prompt_store.samples import sample_bundle

DATA = sample_bundle()
SIGNATURE = sign_bundle(digest_bytes(DATA), "flowers.safetensors", private_key())


@pytest.fixture
def answers():
    return OneArtifact(DATA, [SIGNATURE])


@pytest.fixture
def web(answers):
    with serving_web(answers) as web:
        yield web


def test_a_pull_returns_what_was_pushed(web, answers):
    assert pull(web) == answers.artifact
    assert pull(web, f":1@{answers.digest}") == answers.artifact


def test_the_newest_revision_takes_one_request_without_a_body(web, answers):
    assert opened(f"oci://{web.host}/caspl/flowers:1").newest() == answers.digest
    assert [request.method for request in web.requests] == ["HEAD"]


def test_without_a_digest_in_its_headers_the_manifest_is_hashed(web, answers):
    def without_digest(request):
        return 200, {"Content-Type": answers.manifest_type}, answers.manifest

    answers.changed["/v2/caspl/flowers/manifests/1"] = without_digest
    assert opened(f"oci://{web.host}/caspl/flowers:1").newest() == answers.digest


@pytest.mark.parametrize("change", ["one bit", "shorter"])
def test_a_tampered_bundle_is_refused(web, answers, change):
    tampered = DATA[:-1] + (b"" if change == "shorter" else bytes([DATA[-1] ^ 1]))
    answers.blobs[digest_bytes(DATA)] = tampered
    assert refusal(DigestMismatchError, web).code == "digest_mismatch"


def test_a_longer_blob_than_the_manifest_names_is_not_read_to_its_end(web, answers):
    answers.blobs[digest_bytes(DATA)] = DATA + b"x" * 2**20
    assert refusal(LimitExceededError, web).code == "too_large"


def test_a_tampered_signature_layer_is_refused(web, answers):
    answers.blobs[digest_bytes(SIGNATURE)] = SIGNATURE.replace(b"a", b"b", 1)
    assert refusal(DigestMismatchError, web).code == "digest_mismatch"


def test_a_manifest_with_another_digest_than_the_address_is_refused(web, answers):
    digest = answers.digest
    answers.rewrite(lambda fields: fields["annotations"].update(extra="1"))
    answers.changed[f"/v2/caspl/flowers/manifests/{digest}"] = lambda request: (200, {}, answers.manifest)
    assert refusal(DigestMismatchError, web, f"@{digest}").code == "digest_mismatch"


def test_a_bundle_that_is_too_large_is_not_downloaded(web, answers):
    answers.rewrite(lambda fields: fields["layers"][0].update(size=2**40))
    assert refusal(LimitExceededError, web).code == "too_large"
    assert not [request for request in web.requests if "/blobs/" in request.path]


def test_a_container_image_is_not_a_bundle(web, answers):
    answers.rewrite(lambda fields: fields.update(mediaType="application/vnd.oci.image.index.v1+json"))
    assert refusal(RemoteError, web).code == "media_type_unknown"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "remote_failed"), (401, "remote_unauthorized"), (403, "remote_unauthorized"), (404, "remote_not_found"),
        (429, "remote_failed"), (500, "remote_failed"), (503, "remote_failed"), (302, "remote_failed"),
    ],
)  # fmt: skip
def test_every_status_has_its_code(web, answers, status, code):
    answers.changed["/v2/caspl/flowers/manifests/1"] = lambda request: (status, {}, b"x" * 10_000)
    assert refusal(RemoteError, web).code == code


def test_a_registry_that_is_away_is_unreachable(answers):
    with serving_web(answers) as web:
        pass
    assert refusal(RemoteError, web).code == "remote_unreachable"


def test_a_registry_that_does_not_answer_in_time_is_unreachable(web, answers, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.2)
    promised = {"Content-Length": str(len(DATA))}
    answers.changed[f"/v2/caspl/flowers/blobs/{digest_bytes(DATA)}"] = lambda request: (200, promised, b"half")
    assert refusal(RemoteError, web).code == "remote_unreachable"


def test_a_registry_that_drips_is_given_up(web, answers, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_ANSWER_S", -1.0)
    assert refusal(RemoteError, web).code == "remote_unreachable"


def test_plain_http_needs_an_option_except_on_this_machine(web, answers):
    elsewhere = {"Location": f"http://registry.example/{digest_bytes(DATA)}"}
    answers.changed[f"/v2/caspl/flowers/blobs/{digest_bytes(DATA)}"] = lambda request: (307, elsewhere, b"")
    assert refusal(RemoteError, web).code == "remote_insecure"


@pytest.mark.parametrize(
    "place", ["https://a..b/x", f"https://{'a' * 64}.example/x", "https://[1:2]/x", "https://a:99999/x"]
)
def test_a_redirect_to_an_impossible_address_is_an_error_of_the_registry(web, answers, place):
    answers.changed[f"/v2/caspl/flowers/blobs/{digest_bytes(DATA)}"] = lambda request: (307, {"Location": place}, b"")
    assert refusal(RemoteError, web).code in {"remote_unreachable", "remote_failed"}


def test_a_server_on_https_must_not_lead_to_plain_http():
    client = transfer.Transfer("https://registry.example", plain_http=True)
    with pytest.raises(RemoteError) as refused:
        client.check(client.origin.join("http://127.0.0.1/admin"), client.origin)
    assert refused.value.code == "remote_insecure"


def test_a_loop_of_redirects_ends(web, answers):
    path = "/v2/caspl/flowers/manifests/1"
    answers.changed[path] = lambda request: (307, {"Location": path}, b"")
    assert "more than" in str(refusal(RemoteError, web))


def test_a_push_uploads_every_blob_and_the_manifest_last(answers):
    uploads = Uploads()
    with serving_web(uploads) as web:
        assert push(web, answers) == f"oci://{web.host}/caspl/flowers:1@{answers.digest}"
        first = len(web.requests)
        push(web, answers)
    assert uploads.stored == {**answers.blobs, "1": answers.manifest}
    assert web.requests[first - 1].path.endswith("/manifests/1")
    assert [request.method for request in web.requests[first:]] == ["HEAD"] * len(answers.blobs) + ["PUT"]
    assert all(request.query.get("state") == "abc" for request in web.requests if "uploads/7" in request.path)


def test_a_push_that_breaks_off_leaves_the_tag_as_it_was(answers):
    uploads = Uploads()

    def failing(request):
        return (500, {}, b"") if request.method == "PUT" and len(uploads.stored) > 1 else uploads(request)

    with serving_web(failing) as web, pytest.raises(RemoteError):
        push(web, answers)
    assert "1" not in uploads.stored


def test_a_registry_that_stores_another_manifest_is_an_error(answers):
    def other(request):
        return (
            (201, {"Docker-Content-Digest": "sha256:" + "0" * 64}, b"") if request.method == "PUT" else (200, {}, b"")
        )

    with serving_web(other) as web, pytest.raises(DigestMismatchError):
        push(web, answers)


def test_nothing_is_pushed_to_a_digest(web, answers):
    with pytest.raises(RemoteError) as refused:
        push(web, answers, f"@{answers.digest}")
    assert refused.value.code == "address_invalid"
    assert web.requests == []
