import json
import re

import pytest

from service.errors import DeniedError, SettingsError, UnauthorizedError
from service.http.auth import OPEN_PATHS, Key, KeyRing, add_key, needed_scope, read_keys
from tests.service.fakes import colour_bundle, picture

SCOPE_OF_CALL = {
    ("POST", "/classify/paint"): "classify",
    ("POST", "/domains/paint/versions"): "publish",
    ("DELETE", "/domains/paint/versions/3"): "publish",
    ("GET", "/domains/paint/versions/3/content"): "publish",
    ("PUT", "/domains/paint/live"): "activate",
    ("POST", "/domains/paint/rollback"): "rollback",
    ("GET", "/metrics"): "metrics",
    ("GET", "/domains"): "any",
    ("GET", "/domains/paint"): "any",
    ("GET", "/domains/paint/versions"): "any",
    ("GET", "/domains/paint/versions/3"): "any",
    ("GET", "/domains/paint/history"): "any",
    ("GET", "/info"): "any",
}
ALL_SCOPES = ("classify", "publish", "activate", "rollback", "metrics")


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def ring_of(tmp_path):
    def make(scopes, domains=()):
        path = tmp_path / "keys.json"
        key = add_key(path, list(scopes), list(domains))
        return read_keys(path), key

    return make


@pytest.mark.parametrize("held", ALL_SCOPES)
@pytest.mark.parametrize(("call", "needed"), SCOPE_OF_CALL.items())
def test_a_key_does_what_its_scope_says_on_its_domain_and_nothing_else(ring_of, held, call, needed):
    method, path = call
    keys, key = ring_of([held], ["paint"])
    ring = KeyRing(keys)
    if needed in {held, "any"}:
        assert ring.check(method=method, path=path, authorization=f"Bearer {key}") == keys[0].id
    else:
        with pytest.raises(DeniedError):
            ring.check(method=method, path=path, authorization=f"Bearer {key}")
    if "paint" in path:
        with pytest.raises(DeniedError):
            ring.check(method=method, path=path.replace("paint", "ink"), authorization=f"Bearer {key}")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x", "Basic {key}", "bearer {key}x", "Bearer pk_aaaaaaaa_" + "A" * 43]
)
def test_what_is_not_one_of_our_keys_is_401(ring_of, header):
    keys, key = ring_of(["classify"])
    with pytest.raises(UnauthorizedError):
        KeyRing(keys).check(method="GET", path="/domains", authorization=header.format(key=key))


def test_a_call_that_no_rule_names_is_denied_to_every_key(ring_of):
    keys, key = ring_of(ALL_SCOPES)
    for method, path in (("PATCH", "/domains/paint"), ("GET", "/secret"), ("POST", "/domains"), ("PUT", "/classify/x")):
        with pytest.raises(DeniedError):
            KeyRing(keys).check(method=method, path=path, authorization=f"Bearer {key}")


def test_the_file_holds_no_key_and_is_private(tmp_path):
    path = tmp_path / "keys.json"
    first, second = (add_key(path, ["classify"], []) for _ in range(2))
    assert re.fullmatch(r"pk_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", first)
    assert len(read_keys(path)) == 2
    assert path.stat().st_mode & 0o777 == 0o600
    for key in (first, second):
        secret = key.split("_", 2)[2]  # which may hold one itself
        assert len(secret) == 43
        assert secret not in path.read_text()


def test_a_key_file_that_others_can_read_or_that_is_none_is_refused(tmp_path):
    path = tmp_path / "keys.json"
    with pytest.raises(SettingsError, match="Cannot read"):
        read_keys(path)
    path.write_text(json.dumps({"keys": []}))
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_keys(path)
    path.chmod(0o600)
    path.write_text('{"keys": [{"id": "x"}]}')
    with pytest.raises(SettingsError, match="not a key file"):
        read_keys(path)
    with pytest.raises(SettingsError, match="Unknown scopes"):
        add_key(tmp_path / "new.json", ["everything"], [])


@pytest.mark.anyio
async def test_the_application_asks_for_keys_before_it_reads_a_body(serve, ring_of):
    keys, key = ring_of(["classify"], ["paint"])
    n_read = 0

    async def body():
        nonlocal n_read
        n_read += 1
        yield picture()

    async with serve(keys) as client:
        refused = await client.post("/classify/paint", content=body())
        denied = await client.post("/classify/ink", content=body(), headers=bearer(key))
        served = await client.post("/classify/paint", content=picture(), headers=bearer(key))
        publish = await client.post("/domains/paint/versions", content=colour_bundle(seed=1), headers=bearer(key))
        probes = [(await client.get(path)).status_code for path in sorted(OPEN_PATHS)]
        hidden = [(await client.get(path)).status_code for path in ("/metrics", "/info", "/docs", "/nowhere")]
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert (denied.status_code, denied.json()["code"]) == (403, "denied")
    assert n_read == 0
    assert served.status_code == 200
    assert publish.status_code == 403
    assert probes == [200, 200, 200]
    assert hidden == [401, 401, 401, 401]


@pytest.mark.anyio
async def test_activating_with_an_upload_needs_both_scopes_and_history_names_the_key(serve, ring_of):
    keys, key = ring_of(["publish"])
    async with serve(keys) as client:
        both = await client.post(
            "/domains/paint/versions?activate=true", content=colour_bundle(seed=1), headers=bearer(key)
        )
        upload = await client.post("/domains/paint/versions", content=colour_bundle(seed=1), headers=bearer(key))
        history = (await client.get("/domains/paint/history", headers=bearer(key))).json()["history"]
    assert both.status_code == 403
    assert upload.status_code == 201
    assert history[-1]["actor"] == keys[0].id


@pytest.mark.anyio
async def test_readiness_names_the_domains_to_holders_of_a_key_only(serve, ring_of):
    keys, key = ring_of(["classify"])
    async with serve(keys) as client:
        strangers = [
            (await client.get("/readyz", headers=headers)).json()
            for headers in ({}, bearer("pk_aaaaaaaa_" + "A" * 43), bearer("x"))
        ]
        known = (await client.get("/readyz", headers=bearer(key))).json()
        page = await client.get("/", headers=bearer(key))
    assert strangers == [{"is_ready": True, "reason": None}] * 3
    assert known == {"is_ready": True, "reason": None, "domains": {"ink": "live", "paint": "live"}}
    assert page.status_code == 200


@pytest.mark.anyio
async def test_every_route_of_the_application_has_a_rule(serve):
    async with serve() as client:
        paths = client.app.openapi()["paths"]
    calls = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(calls) > 12
    for method, path in calls:
        if path not in OPEN_PATHS:
            assert needed_scope(method, path.replace("{domain}", "paint").replace("{version}", "3"))[0], (method, path)


def test_keys_with_unknown_scopes_cannot_exist():
    with pytest.raises(ValueError, match="scopes"):
        Key.model_validate({"id": "a" * 8, "sha256": "0" * 64, "scopes": ["root"]})
