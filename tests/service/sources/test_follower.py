"""Bundles at followed addresses go live as uploads do, and the live version serves while a source is unreachable."""

import asyncio
import threading
from contextlib import ExitStack
from functools import partial

import pytest

from prompt_store import digest_bytes
from prompt_store.remotes.artifact import make_artifact
from prompt_store.signing_keys import sign_bundle
from service.access.key_file import add_key, read_keys
from service.app import build
from service.errors import SettingsError
from service.settings import Settings
from service.sources import follower
from tests.prompt_store.keys import private_key, write_keys
from tests.prompt_store.places import moto_port, s3_place
from tests.prompt_store.remotes.hubs import HubServer
from tests.prompt_store.remotes.opening import close_all, opened
from tests.prompt_store.remotes.registries import OneArtifact
from tests.prompt_store.remotes.web import serving_web
from tests.service.engine.engine_rows import until
from tests.service.fakes import colour_bundle, picture

__all__ = ["moto_port", "s3_place"]

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True

FIRST, SECOND, THIRD = (colour_bundle(seed=seed) for seed in range(3))


class Source:
    """A registry with one tag, whose artifact and availability a test changes."""

    def __init__(self, data):
        self.is_away = False
        self.point_to(data)

    def point_to(self, data, *signers):
        self.artifact = OneArtifact(data, [sign_bundle(digest_bytes(data), "x", private_key(one)) for one in signers])

    def __call__(self, request):
        return (503, {}, b"") if self.is_away else self.artifact(request)


@pytest.fixture
def servers():
    """Starts registries that end with the test."""
    with ExitStack() as stack:
        yield lambda source: stack.enter_context(serving_web(source))


@pytest.fixture
def source(servers):
    source = Source(SECOND)
    source.web = servers(source)
    source.address = f"oci://{source.web.host}/caspl/flowers:1"
    return source


@pytest.fixture
def follow(serve):
    """Serves with followed addresses that are checked once at the start, and then with `check(client)`."""
    return partial(serve, follow_every_s=1000)


async def first_check(client):
    for one in client.context.sources:
        await until(lambda one=one: one.state.name != "new")


async def check(client):
    for one in client.context.sources:
        await one.check()


async def live(client, domain="paint"):
    return (await client.get(f"/domains/{domain}")).json()


async def shown(client):
    """The sources in /readyz."""
    return (await client.get("/readyz")).json()["sources"]


async def test_the_bundle_at_an_address_goes_live_with_the_address_in_the_history(follow, source, store):
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        answer = (await client.post("/classify/paint", content=picture())).json()
        (state,) = await shown(client)
        metrics = (await client.get("/metrics")).text
    assert (answer["version"], answer["digest"]) == (2, digest_bytes(SECOND))
    assert [entry.actor for entry in store.history("paint")][-2:] == [f"follow:{source.address}"] * 2
    assert (state["state"], state["domain"], state["digest"]) == ("ok", "paint", digest_bytes(SECOND))
    assert (state["error"], state["address"]) == (None, source.address)
    assert 'caspl_sources{state="ok"} 1.0' in metrics
    assert 'caspl_source_checks_total{result="updated"} 1.0' in metrics


async def test_an_unchanged_source_costs_one_request_and_a_changed_one_is_followed(follow, source):
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        n_requests = len(source.web.requests)
        await check(client)
        assert [request.method for request in source.web.requests[n_requests:]] == ["HEAD"]
        source.point_to(THIRD)
        await check(client)
        assert (await live(client))["digest"] == digest_bytes(THIRD)


async def test_the_hub_is_followed_as_well(follow, servers, monkeypatch):
    pytest.importorskip("huggingface_hub")
    hub = HubServer()
    web, hub.storage, hub.visibility = servers(hub), servers(hub).url, "public"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", web.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.commit({"paint.safetensors": SECOND})
    async with follow(follow=["hf://acme/flowers"]) as client:
        await first_check(client)
        assert (await live(client))["digest"] == digest_bytes(SECOND)
        hub.commit({"paint.safetensors": SECOND, "README.md": b"another commit, the same bundle"})
        await check(client)
        assert (await live(client))["version"] == 2
        hub.commit({"paint.safetensors": THIRD})
        await check(client)
        assert (await live(client))["digest"] == digest_bytes(THIRD)


async def test_a_bucket_is_followed_as_well_and_the_live_version_serves_while_it_is_away(follow, s3_place):
    def push(data):
        opened(address).push(make_artifact(data, ())[0])
        close_all()

    address = f"s3://{s3_place.bucket}/shared/flowers"
    push(SECOND)
    async with follow(follow=[address]) as client:
        await first_check(client)
        assert (await live(client))["digest"] == digest_bytes(SECOND)
        s3_place.proxy.requests.clear()
        await check(client)
        assert [method for method, _ in s3_place.proxy.requests] == ["GET"]
        s3_place.proxy.is_down = True
        await check(client)
        (state,) = await shown(client)
        assert state["state"] == "failed"
        assert (await client.post("/classify/paint", content=picture())).status_code == 200
        s3_place.proxy.is_down = False
        push(THIRD)
        await check(client)
        assert (await live(client))["digest"] == digest_bytes(THIRD)


async def test_a_new_domain_appears(follow, source):
    source.point_to(colour_bundle("shelf"))
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        assert (await client.post("/classify/shelf", content=picture())).status_code == 200


async def test_the_live_version_serves_while_the_source_is_away(follow, source, caplog):
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        source.is_away = True
        for _ in range(3):
            await check(client)
        answer = await client.post("/classify/paint", content=picture())
        (away,) = await shown(client)
        metrics = (await client.get("/metrics")).text
        source.is_away = False
        source.point_to(THIRD)
        await check(client)
        (back,) = await shown(client)
        assert (await live(client))["digest"] == digest_bytes(THIRD)
    assert (answer.status_code, answer.json()["digest"]) == (200, digest_bytes(SECOND))
    assert (away["state"], away["error"], away["digest"]) == ("failed", "remote_failed", digest_bytes(SECOND))
    assert 'caspl_sources{state="failed"} 1.0' in metrics
    assert (back["state"], back["error"]) == ("ok", None)
    events = [record.getMessage() for record in caplog.records if record.name == follower.__name__]
    assert events.count("source.failed") == 1


async def test_a_service_starts_and_serves_without_its_source(follow, source):
    source.is_away = True
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        assert (await client.post("/classify/paint", content=picture())).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_a_tampered_bundle_changes_nothing(follow, source, store):
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        source.point_to(THIRD)
        source.artifact.blobs[digest_bytes(THIRD)] = THIRD[:-1] + bytes([THIRD[-1] ^ 1])
        await check(client)
        (state,) = await shown(client)
        assert (await live(client))["digest"] == digest_bytes(SECOND)
    assert state["error"] == "digest_mismatch"
    assert len(store.versions("paint")) == 2


async def test_only_signed_bundles_are_followed_where_a_signature_is_required(follow, source, store, tmp_path):
    for data, domain in ((FIRST, "paint"), (colour_bundle("ink", ("blue", "red")), "ink")):
        store.add_signature(domain, 1, sign_bundle(digest_bytes(data), "x", private_key()))
    settings = {"follow": [source.address], "require_signature": [write_keys(tmp_path)[1]]}
    async with follow(**settings) as client:
        await first_check(client)
        assert (await shown(client))[0]["error"] == "signature_required"
        source.point_to(SECOND, 1)
        await check(client)
        assert (await shown(client))[0]["error"] == "signature_invalid"
        assert (await live(client))["digest"] == digest_bytes(FIRST)
        source.point_to(SECOND, 1, 0)  # the second signature is by the required key
        await check(client)
        assert (await live(client))["digest"] == digest_bytes(SECOND)
    assert len(store.signatures(digest_bytes(SECOND))) == 2
    async with follow(**settings) as client:
        assert (await live(client))["state"] == "live"


async def test_a_signature_that_is_added_at_the_source_reaches_the_version_that_is_live(
    follow, source, store, tmp_path
):
    source.point_to(FIRST)
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        source.point_to(FIRST, 0)
        await check(client)
    assert len(store.signatures(digest_bytes(FIRST))) == 1
    assert len(store.versions("paint")) == 1
    async with follow(require_signature=[write_keys(tmp_path)[1]]) as client:
        assert (await live(client))["state"] == "live"


async def test_a_domain_whose_version_lacks_a_signature_serves_once_the_source_has_one(follow, source, tmp_path):
    source.point_to(FIRST, 0)
    async with follow(follow=[source.address], require_signature=[write_keys(tmp_path)[1]]) as client:
        await first_check(client)
        assert (await client.post("/classify/paint", content=picture())).json()["version"] == 1
        assert (await live(client))["state"] == "live"


async def test_a_rollback_lasts_until_the_source_names_another_bundle(follow, source):
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        await client.post("/domains/paint/rollback")
        await check(client)
        assert (await live(client))["version"] == 1
    async with follow(follow=[source.address]) as client:  # also after a restart
        await first_check(client)
        assert (await live(client))["version"] == 1
        source.point_to(THIRD)
        await check(client)
        assert (await live(client))["version"] == 3


async def test_a_rollback_lasts_however_many_changes_follow_it(follow, source, store, monkeypatch):
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        await client.post("/domains/paint/rollback")
    for seed in range(7, 12):
        store.add("paint", colour_bundle(seed=seed))
    monkeypatch.setattr(store, "history", partial(store.history, limit=2))
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        assert (await shown(client))[0]["state"] == "ok"
        assert (await live(client))["version"] == 1


async def test_a_source_that_goes_back_activates_the_version_that_exists(follow, source, store):
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        source.point_to(FIRST)
        await check(client)
        assert (await live(client))["version"] == 1
    assert len(store.versions("paint")) == 2


async def test_an_address_keeps_its_domain(follow, source):
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        source.point_to(colour_bundle("ink", ("blue", "red"), seed=5))
        await check(client)
        assert (await shown(client))[0]["error"] == "manifest_mismatch"
        assert (await live(client, "ink"))["version"] == 1


async def test_a_domain_in_front_of_the_address_is_the_only_one(follow, source):
    async with follow(follow=[f"ink={source.address}"]) as client:
        await first_check(client)
        assert (await shown(client))[0]["error"] == "manifest_mismatch"
        assert (await live(client))["version"] == 1


async def test_two_addresses_of_one_domain_do_not_take_turns(follow, source, servers):
    other = Source(THIRD)
    address = f"oci://{servers(other).host}/caspl/flowers:1"
    async with follow(follow=[source.address, address]) as client:
        await first_check(client)
        before = await live(client)
        await check(client)
        assert await live(client) == before
        assert sorted(str(state["error"]) for state in await shown(client)) == ["None", "domain_followed"]


async def test_a_bundle_that_cannot_run_here_keeps_the_live_version(follow, source, model):
    model.fail_load = False
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        model.fail_load = True
        source.point_to(THIRD)
        await check(client)
        assert (await shown(client))[0]["error"] == "stack_mismatch"
        assert (await client.post("/classify/paint", content=picture())).json()["version"] == 2
        model.fail_load = False
        await check(client)  # the same revision is tried again
        assert (await live(client))["version"] == 3


async def test_an_unexpected_error_is_logged_and_the_next_check_runs(follow, source, monkeypatch, caplog):
    async with follow(follow=[source.address]) as client:
        await first_check(client)
        (one,) = client.context.sources
        with monkeypatch.context() as broken:
            broken.setattr(one._remote, "newest", lambda: 1 / 0)
            await check(client)
        assert one.state.error == "internal"
        await check(client)
        assert one.state.name == "ok"
    assert any(record.exc_info for record in caplog.records)


async def test_a_key_shows_the_sources_of_its_domains_alone(follow, source, tmp_path):
    path = tmp_path / "keys.json"
    tokens = [add_key(path, ["classify"], domains) for domains in (["paint"], ["ink"], [])]
    settings = {"follow": [source.address], "keys_file": path}
    async with follow(keys=read_keys(path), **settings) as client:
        await first_check(client)
        answers = [
            (await client.get("/readyz", headers={"Authorization": f"Bearer {token}"})).json() for token in tokens
        ]
        anonymous = (await client.get("/readyz")).json()
    assert [len(answer.get("sources", [])) for answer in answers] == [1, 0, 1]
    assert "sources" not in anonymous


async def test_a_source_that_hangs_does_not_delay_the_stop(follow, source):
    held = threading.Event()

    async def serve_and_stop():
        async with follow(follow=[source.address]):
            await until(lambda: source.web.requests)

    source.artifact.changed["/v2/caspl/flowers/manifests/1"] = lambda request: held.wait(20) and (404, {}, b"")
    try:
        await asyncio.wait_for(serve_and_stop(), 10)
    finally:
        held.set()


async def test_checks_are_repeated_with_jitter_and_rarer_after_failures(follow, source, monkeypatch):
    waits = []

    async def note(wait_s):
        waits.append(wait_s)
        if len(waits) == 8:
            raise asyncio.CancelledError

    async with follow(follow=[source.address]) as client:
        await first_check(client)
        (one,) = client.context.sources
        one._every_s = 10
        source.is_away = True
        monkeypatch.setattr(follower.asyncio, "sleep", note)
        with pytest.raises(asyncio.CancelledError):
            await one.run()
        monkeypatch.undo()
    expected = [20, 40, 80, 160, 300, 300, 300, 300]
    assert all(0.9 * wait <= found <= 1.1 * wait for found, wait in zip(waits, expected, strict=True))
    assert waits[-1] != waits[-2]


@pytest.mark.parametrize(
    ("address", "code"),
    [("flowers", "address_invalid"), ("No Domain=oci://h/a", "settings_invalid"), ("oci://u:p@h/a", "address_invalid")],
)
async def test_an_invalid_address_prevents_the_start(model, store, address, code):
    from service.access.keys import KeyRing

    with pytest.raises(SettingsError) as refused:
        build(Settings(follow=[address]), model, store, KeyRing())
    assert refused.value.code == code
    assert "follow" in str(refused.value)
