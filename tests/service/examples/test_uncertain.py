"""Images of classify requests that are kept because the live version is uncertain about them."""

import asyncio
import hashlib
import io
import logging
import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prompt_store.errors import StorageFullError
from service.errors import ExamplesFullError
from service.examples import uncertain
from tests.service.examples.pictures import add, new_example, open_database
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True
CERTAIN, FAIR, UNSURE, TORN = "#ff0000", "#ff4000", "#ff8000", "#fff000"
"""From red, which the domain `paint` has, towards yellow, which is as much green as red."""


async def classify(client, *colours, path="/classify/paint", **options):
    files = [("images", (f"{colour}.png", picture(colour))) for colour in colours]
    answer = await client.post(path, files=files, **options)
    assert answer.status_code == 200, answer.text
    await settle(client)
    return answer.json()


async def settle(client):
    """Wait until every image that was offered has been processed."""
    watching = client.app.state.context.uncertain
    if watching:
        await asyncio.to_thread(watching._thread.submit(lambda: None).result)


def kept(client, domain="paint", **filters):
    return client.context.examples.page(domain, limit=1000, **filters)


def kept_colours(client):
    colours = {hashlib.sha256(picture(colour)).hexdigest(): colour for colour in (CERTAIN, FAIR, UNSURE, TORN)}
    return {colours[example.sha256] for example in kept(client)}


async def count(client, result):
    text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("caspl_examples_total") and f'"{result}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_nothing_is_kept_by_default(serve):
    async with serve() as client:
        await classify(client, CERTAIN, TORN)
        assert client.app.state.context.uncertain is None
        assert kept(client) == []
        assert not list(client.context.store.root.glob("examples*"))


async def test_the_least_certain_images_are_kept_unlabelled(serve):
    async with serve(keep_uncertain=2) as client:
        await classify(client, CERTAIN, TORN, FAIR)
        assert kept_colours(client) == {TORN, FAIR}
        await classify(client, UNSURE, CERTAIN)
        assert kept_colours(client) == {TORN, UNSURE}

        for example in kept(client):
            assert (example.label, example.source, example.has_picture) == (None, "traffic", False)
            with Image.open(io.BytesIO(client.context.examples.thumbnail("paint", example.id))) as image:
                assert (image.format, image.size) == ("WEBP", (20, 24))
        assert await count(client, "kept") >= 2
        assert kept(client, "ink") == []


async def test_kept_images_have_the_feature_of_the_version_that_scored_them(serve):
    async with serve(keep_uncertain=1) as client:
        body = await classify(client, TORN, path="/classify/paint?return=embedding")
        with closing(sqlite3.connect(client.context.store.root / "examples.sqlite3")) as connection:
            ((key,),) = connection.execute("SELECT name FROM feature_keys")
        features = client.context.examples.unlabelled("paint", key)
        answer = await client.post("/domains/paint/examples", files=[("red", picture(CERTAIN))])
        assert answer.status_code == 201, answer.text
        assert client.context.examples.labelled("paint", key).stale_ids == [], "uploads have the same key"
    np.testing.assert_allclose(features.features_NE[0], body["results"][0]["embedding"], atol=1e-6)


@pytest.mark.parametrize("query", ["?version=1", "?labels=red,green", "?stack=boost"])
async def test_only_images_that_are_scored_with_default_options_are_kept(serve, query):
    async with serve(keep_uncertain=5) as client:
        await classify(client, TORN, path=f"/classify/paint{query}")
        assert kept(client) == []


async def test_answers_are_the_same_whether_images_are_kept_or_not(serve):
    bodies = []
    for keep_uncertain in (0, 5):
        async with serve(keep_uncertain=keep_uncertain) as client:
            for query in ("?top_k=1", "", "?return=embedding", "?top_k=1&threshold=0.4"):
                body = await classify(client, TORN, CERTAIN, path=f"/classify/paint{query}")
                bodies.append((keep_uncertain, {**body, "request_id": "", "timing_ms": {}}))
            assert len(kept(client)) == (2 if keep_uncertain else 0)
    assert [body for keep, body in bodies if keep] == [body for keep, body in bodies if not keep]
    assert len(bodies[0][1]["results"][0]["predictions"]) == 1


async def test_a_request_for_several_domains_keeps_images_of_each(serve):
    async with serve(keep_uncertain=5) as client:
        files = [("paint", picture(TORN)), ("ink", picture("#800080")), ("nothing", picture(TORN)), ("paint", b"x")]
        answer = await client.post("/classify", files=files)
        assert answer.status_code == 200
        await settle(client)
        assert (len(kept(client)), len(kept(client, "ink"))) == (1, 1)


async def test_pictures_are_kept_only_with_the_setting_pictures(serve):
    async with serve(keep_uncertain=5, keep_examples="pictures") as client:
        await classify(client, TORN)
        (example,) = kept(client)
        assert client.context.examples.picture("paint", example.id) == picture(TORN)


async def test_a_labelled_image_stays_and_does_not_count_towards_keep_uncertain(serve, monkeypatch):
    monkeypatch.setattr(uncertain, "BOUND_TTL_S", 0)
    async with serve(keep_uncertain=1) as client:
        await classify(client, TORN)
        client.context.examples.relabel("paint", [kept(client)[0].id], "red")
        await classify(client, FAIR)
        await classify(client, UNSURE)
        assert kept_colours(client) == {TORN, UNSURE}


async def test_an_image_that_is_certain_enough_causes_no_query(serve, monkeypatch):
    async with serve(keep_uncertain=1) as client:
        await classify(client, TORN)
        database = client.app.state.context.examples
        queries = []
        bound = database.uncertain_bound
        monkeypatch.setattr(database, "uncertain_bound", lambda *a, **k: queries.append(a) or bound(*a, **k))
        await classify(client, CERTAIN, FAIR, UNSURE)
        assert queries == []


async def test_images_beyond_the_queue_are_dropped_and_counted_and_answers_do_not_wait(serve, monkeypatch):
    monkeypatch.setattr(uncertain, "MAX_WAITING_IMAGES", 2)
    async with serve(keep_uncertain=5) as client:
        database, is_released = client.app.state.context.examples, threading.Event()
        bound = database.uncertain_bound

        def slow(*arguments, **options):
            is_released.wait(20)
            return bound(*arguments, **options)

        monkeypatch.setattr(database, "uncertain_bound", slow)
        files = [("images", picture(colour)) for colour in (TORN, UNSURE, FAIR, CERTAIN)]
        answer = await client.post("/classify/paint", files=files)
        assert answer.status_code == 200
        assert await count(client, "dropped") == 2
        is_released.set()
        await settle(client)
        assert kept_colours(client) == {TORN, UNSURE}
        await classify(client, FAIR)
        assert kept_colours(client) == {TORN, UNSURE, FAIR}


async def test_waiting_images_take_bounded_memory(serve, monkeypatch):
    monkeypatch.setattr(uncertain, "MAX_WAITING_BYTES", 10)
    async with serve(keep_uncertain=5) as client:
        await classify(client, TORN)
        assert kept(client) == []
        assert await count(client, "dropped") == 1


@pytest.mark.parametrize(
    "error", [StorageFullError("full"), ExamplesFullError("full", limit=1), RuntimeError("a bug")], ids=type
)
async def test_a_full_disk_or_a_bug_affects_no_response_and_is_logged_once(serve, monkeypatch, caplog, error):
    async with serve(keep_uncertain=5) as client:

        def fail(*_, **__):
            raise error

        monkeypatch.setattr(client.app.state.context.examples, "keep_uncertain", fail)
        with caplog.at_level(logging.WARNING):
            await classify(client, TORN)
            await classify(client, UNSURE)
        assert [record.message for record in caplog.records].count("example.not_kept") == 1
        assert await count(client, "dropped") == 1


async def test_the_server_logs_at_its_start_that_it_keeps_images(serve, caplog):
    with caplog.at_level(logging.WARNING):
        async with serve(keep_uncertain=7):
            pass
    (record,) = [record for record in caplog.records if record.message == "examples.kept_from_requests"]
    assert record.per_domain == 7


async def test_images_that_an_earlier_live_version_scored_are_replaced_first(serve, store):
    async with serve(keep_uncertain=1) as client:
        await classify(client, TORN)
        answer = await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=1))
        assert answer.status_code == 201
        await classify(client, CERTAIN)
        assert kept_colours(client) == {CERTAIN}
        await classify(client, FAIR)
        assert kept_colours(client) == {FAIR}


# The database


def keep(database, n, margin, *, n_kept=3, digest="first"):
    return database.keep_uncertain(
        "flowers", new_example(n), margin=margin, digest=digest, n_kept=n_kept, actor="camera"
    )


@given(
    st.lists(st.tuples(st.integers(0, 15), st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.sampled_from("ab")), max_size=30),
    st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_the_same_images_are_kept_as_in_a_sorted_list(tmp_path_factory, offers, n_kept):
    database, expected = open_database(tmp_path_factory.mktemp("examples")), []
    for n, margin, digest in offers:
        own = sorted((one for one in expected if one[2] == digest), key=lambda one: one[1])
        is_among_them = len(own) < n_kept or margin < own[n_kept - 1][1]
        is_new = all(one[0] != n for one in expected)
        assert keep(database, n, margin, n_kept=n_kept, digest=digest) == (is_among_them and is_new)
        if is_among_them and is_new:
            others = sorted((one for one in expected if one[2] != digest), key=lambda one: one[1])
            expected = [*sorted([*own, (n, margin, digest)], key=lambda one: one[1]), *others][:n_kept]
        assert {one.sha256 for one in database.page("flowers")} == {new_example(one[0]).sha256 for one in expected}
    database.close()


def test_uploaded_and_labelled_examples_are_never_replaced(quick_path):
    database = open_database(quick_path)
    add(database, new_example(1, None), new_example(2, "rose"))
    keep(database, 3, 0.5, n_kept=1)
    database.relabel("flowers", [3], "tulip")
    keep(database, 4, 0.9, n_kept=1)
    keep(database, 5, 0.1, n_kept=1)

    assert [one.sha256 for one in database.page("flowers")] == [new_example(n).sha256 for n in (1, 2, 3, 5)]
    assert not keep(database, 2, 0.0, n_kept=9), "the domain has it already"
    database.close()


def test_kept_images_count_towards_the_limits(quick_path):
    database = open_database(quick_path, max_per_domain=2)
    add(database, new_example(1, "rose"), new_example(2, "rose"))
    with pytest.raises(ExamplesFullError):
        keep(database, 3, 0.5)
    database.remove("flowers", [1])
    assert keep(database, 3, 0.5, n_kept=1)
    assert keep(database, 4, 0.4, n_kept=1), "it takes the place of another one"
    database.close()
