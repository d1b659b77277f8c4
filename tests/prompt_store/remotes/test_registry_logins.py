"""Credentials of registries: they are sent after a challenge, and never to another host."""

import json

import pytest

from prompt_store import digest_bytes
from prompt_store.errors import RemoteError
from tests.prompt_store.remotes.registries import BASIC, PASSWORD, OneArtifact, Uploads, pull, push, refusal
from tests.prompt_store.remotes.web import serving_web
from tests.prompt_store.samples import sample_bundle

DATA = sample_bundle()


@pytest.fixture
def answers():
    return OneArtifact(DATA)


@pytest.fixture
def log_in(no_login):
    """Write a login for a host into docker's configuration."""

    def write(host):
        entry = {"auth": BASIC.removeprefix("Basic ")}
        (no_login / "config.json").write_text(json.dumps({"auths": {host: entry}}))

    return write


def test_basic_credentials_are_sent_after_a_challenge_and_to_this_registry_alone(answers, log_in):

    with serving_web(lambda request: (200, {}, DATA)) as storage:

        def guarded(request):
            if request.headers.get("authorization") != BASIC:
                return 401, {"WWW-Authenticate": 'Basic realm="tests"'}, b""
            if request.path.endswith(digest_bytes(DATA)):
                return 307, {"Location": f"{storage.url}/object"}, b""
            return answers(request)

        with serving_web(guarded) as web:
            log_in(web.host)
            assert pull(web) == answers.artifact
        assert storage.sent("authorization") == [None]
        assert [request.path for request in storage.requests] == ["/object"]


def bearer(answers, tokens):
    """A registry that accepts a token of a token server."""

    def answer(request):
        if request.headers.get("authorization") != "Bearer granted":
            realm = f'Bearer realm="{tokens.url}/token",service="tests",scope="repository:caspl/flowers:pull"'
            return 401, {"WWW-Authenticate": realm}, b""
        return answers(request)

    return answer


def test_a_token_is_fetched_with_the_credentials_and_sent_to_the_registry(answers, log_in):
    def tokens(request):
        assert request.query == {"service": "tests", "scope": "repository:caspl/flowers:pull"}
        return 200, {}, json.dumps({"token": "granted"}).encode()

    with serving_web(tokens) as token_server, serving_web(bearer(answers, token_server)) as web:
        assert pull(web) == answers.artifact  # an anonymous token
        log_in(web.host)
        assert pull(web) == answers.artifact
        assert token_server.sent("authorization") == [None, BASIC]
        assert BASIC not in web.sent("authorization")


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, b"", "remote_unauthorized"),
        (400, b"", "remote_failed"),
        (200, b"not JSON", "remote_failed"),
        (200, b"{}", "remote_failed"),
        (200, b'{"token": "a\\r\\nX: y"}', "remote_failed"),
    ],
)
def test_a_token_server_that_refuses_or_fails_is_an_error(answers, log_in, status, body, code):
    with (
        serving_web(lambda request: (status, {}, body)) as token_server,
        serving_web(bearer(answers, token_server)) as web,
    ):
        log_in(web.host)
        refused = refusal(RemoteError, web)
    assert refused.code == code
    assert PASSWORD not in str(refused)


@pytest.mark.parametrize("realm", ["http://tokens.example/token", "ftp://x/", "", "http://[oops/"])
def test_a_token_server_without_encryption_gets_no_credentials(answers, log_in, realm):
    challenge = {"WWW-Authenticate": f'Bearer realm="{realm}"'}
    with serving_web(lambda request: (401, challenge, b"")) as web:
        log_in(web.host)
        assert refusal(RemoteError, web).code in {"remote_insecure", "remote_failed"}


def test_a_token_server_must_not_lead_to_another_host_without_encryption(answers, log_in):
    elsewhere = {"Location": "http://tokens.example/token"}
    with (
        serving_web(lambda request: (307, elsewhere, b"")) as token_server,
        serving_web(bearer(answers, token_server)) as web,
    ):
        log_in(web.host)
        assert refusal(RemoteError, web).code == "remote_insecure"


def test_refused_credentials_name_the_way_to_log_in(answers, log_in):
    with serving_web(lambda request: (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"")) as web:
        log_in(web.host)
        refused = refusal(RemoteError, web)
        assert refused.code == "remote_unauthorized"
        assert f"docker login {web.host}" in str(refused)
        assert web.sent("authorization") == [None, BASIC]  # once, not in a loop


def test_an_upload_to_another_host_carries_no_credentials(answers, log_in):
    elsewhere = Uploads()
    with serving_web(elsewhere) as storage:
        uploads = Uploads(storage.url)
        uploads.is_guarded = True
        with serving_web(uploads) as web:
            log_in(web.host)
            push(web, answers)
        assert set(storage.sent("authorization")) == {None}
    assert elsewhere.stored == answers.blobs
