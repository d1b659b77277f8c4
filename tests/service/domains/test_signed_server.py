"""A server process that requires signatures, with curl's headers, kills and restarts."""

import base64
import json

import pytest

from prompt_store import Store, digest_bytes
from prompt_store.signing_keys import sign_bundle
from service.access.key_file import add_key, revoke_key
from tests.prompt_store.keys import private_key, write_keys
from tests.service.fakes import colour_bundle, picture
from tests.service.processes import client_of, eventually, serving

pytestmark = pytest.mark.slow

FIRST, SECOND = colour_bundle(), colour_bundle(seed=1)


def header(data, number=0):
    signature = sign_bundle(digest_bytes(data), "paint.safetensors", private_key(number))
    return {"Caspl-Signature": base64.b64encode(signature).decode()}


@pytest.mark.parametrize("web_workers", [0, 1])
def test_a_server_serves_signed_bundles_only_before_and_after_a_restart(tmp_path, web_workers):
    store = Store.open(tmp_path / "store")
    settings = {"require_signature": [str(write_keys(tmp_path)[1])], "web_workers": web_workers, "drain_delay_s": 0}
    uploads = [
        (FIRST, {}, 403, "signature_required"),
        (FIRST, header(FIRST, 1), 403, "signature_invalid"),
        (FIRST, header(SECOND), 403, "signature_invalid"),
        (FIRST, header(FIRST), 201, None),
        (SECOND, header(SECOND), 201, None),
    ]
    with serving(store, **settings) as (_, url), client_of(url) as client:
        for data, headers, status, code in uploads:
            answer = client.post("/domains/paint/versions?activate=true", content=data, headers=headers)
            assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
        assert client.post("/classify/paint", content=picture()).json()["version"] == 2
    assert [row.action for row in store.audit().rows] == ["publish", "activate", "publish", "activate"]
    store.add("ink", colour_bundle("ink", ("blue", "red")))
    store.activate("ink", 1)
    with serving(store, **settings) as (_, url), client_of(url) as client:
        states = client.get("/readyz").json()["domains"]
        rolled_back = client.post("/domains/paint/rollback")
    assert states == {"paint": "live", "ink": "broken"}
    assert rolled_back.json()["version"] == 1
    assert store.audit().problems() == []


def test_a_server_does_not_start_with_a_file_that_is_no_key(tmp_path):
    store = Store.open(tmp_path / "store")
    private, _ = write_keys(tmp_path)
    with (tmp_path / "log").open("w+") as log:
        with (
            pytest.raises(AssertionError, match="did not start"),
            serving(store, log=log, require_signature=[str(private)]),
        ):
            pass
        log.seek(0)
        assert "is not an Ed25519 public key in PEM" in log.read()


@pytest.mark.parametrize("web_workers", [0, 1])
def test_a_server_with_a_signing_key_creates_domains_that_it_serves_after_a_restart(tmp_path, web_workers):
    store = Store.open(tmp_path / "store")
    private, public = write_keys(tmp_path)
    settings = {"require_signature": [str(public)], "web_workers": web_workers, "drain_delay_s": 0}
    with serving(store, signing_key=str(private), **settings) as (_, url), client_of(url) as client:
        created = client.put("/domains/paint", json={"classes": ["red", "blue"]})
        assert created.status_code == 201, created.text
    with serving(store, **settings) as (_, url), client_of(url) as client:
        assert client.get("/readyz").json()["domains"] == {"paint": "live"}
        (version,) = client.get("/domains/paint/versions").json()["versions"]
        assert client.post("/classify/paint", content=picture()).status_code == 200
    assert [(one["name"], one["is_verified"]) for one in version["signatures"]] == [("key0", True)]
    assert [(row.action, row.domain) for row in store.audit().rows] == [("create", "paint"), ("activate", "paint")]


def test_a_server_does_not_start_with_a_signing_key_that_others_can_read(tmp_path):
    private, _ = write_keys(tmp_path)
    private.chmod(0o644)
    with (tmp_path / "log").open("w+") as log:
        with (
            pytest.raises(AssertionError, match="did not start"),
            serving(Store.open(tmp_path / "store"), log=log, signing_key=str(private)),
        ):
            pass
        log.seek(0)
        assert "is accessible to other users; run `chmod 600" in log.read()


def test_the_keys_in_force_are_in_the_audit_log(tmp_path):
    store, keys = Store.open(tmp_path / "store"), tmp_path / "keys.json"
    store.add("paint", FIRST)
    first = add_key(keys, ["classify"], [])
    with serving(store, keys_file=str(keys)) as (_, _url):
        wait_for(store, ["publish", "key added"])
        second = add_key(keys, ["publish", "classify"], [])
        wait_for(store, ["publish", "key added", "key added"])
    revoke_key(keys, first[3:11])  # while no service runs
    with serving(store, keys_file=str(keys)):
        wait_for(store, ["publish", "key added", "key added", "key removed"])
    rows = store.audit().rows
    assert [row.key for row in rows[1:]] == [
        f"{first[3:11]} (classify)",
        f"{second[3:11]} (classify publish)",
        first[3:11],
    ]
    assert second[12:] not in json.dumps([vars(row) for row in rows])


def wait_for(store, actions):
    eventually(lambda: [row.action for row in store.audit().rows] == actions)
