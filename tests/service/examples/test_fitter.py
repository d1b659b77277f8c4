"""Fits of a domain: features of other prompts, predictions, and the cache."""

import asyncio
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from service.domains.loader import VersionLoader
from tests.service.engine.engine_rows import until
from tests.service.examples.colours import KEY, add_colours, colour_example
from tests.service.examples.pictures import open_database
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
FIT = "/domains/paint/fit"
COLOURS = ("red", "green", "blue")


@pytest.fixture
def other_prompts(store):
    """Make a version without image prompts live, as version 2."""
    store.activate("paint", store.add("paint", colour_bundle(boost=False)).version)


def add_pictures(database, n_each, labelled=True):
    """Add examples with pictures of one colour each, of a different shade."""
    examples = [
        colour_example(colour, n, colour if labelled else None, picture=picture(_shade(colour, n)))
        for colour in COLOURS
        for n in range(n_each)
    ]
    return database.add("paint", examples, actor="", source="upload")


def _shade(colour, n):
    rgb = [10 + 9 * n] * 3
    rgb[COLOURS.index(colour)] = 250
    return tuple(rgb)


async def test_the_base_version_is_read_once_while_labels_change(serve, monkeypatch):
    reads, read = [], VersionLoader.read

    def counted(loader, domain, version):
        reads.append((domain, version))
        return read(loader, domain, version)

    async with serve() as client:
        database = client.context.examples
        add_colours(database)
        number = database.page("paint")[0].id
        monkeypatch.setattr(VersionLoader, "read", counted)
        revisions = set()
        for label in ("green", "blue", "red", "green"):
            database.relabel("paint", [number], label)
            answer = await client.get(FIT)
            assert answer.status_code == 200, answer.text
            revisions.add(answer.json()["revision"])
    assert reads == [("paint", 1)]
    assert len(revisions) == 4


async def test_features_of_other_prompts_are_never_used(serve, other_prompts):
    async with serve() as client:
        add_colours(client.context.examples)
        for answer in (await client.get(FIT), await client.post(FIT, json={})):
            assert (answer.status_code, answer.json()["code"], answer.json()["n_stale"]) == (409, "examples_stale", 24)
        before = await client.post(FIT, json={"based_on": 1})
        assert (before.status_code, before.json()["is_live"]) == (201, True)
        assert len((await client.get("/domains/paint/versions")).json()["versions"]) == 3


async def test_missing_features_are_computed_once_from_the_pictures(serve, model, other_prompts):
    async with serve() as client:
        database = client.context.examples
        add_pictures(database, 8)
        client.context.examples.add("paint", [colour_example("red", 99)], actor="", source="upload")
        model.batches.clear()
        answer = await client.get(FIT)
        assert answer.status_code == 200, answer.text
        assert sum(map(len, model.batches)) == 24
        feature_set = database.labelled("paint", KEY.rpartition("/")[0] + "/")
        assert (len(feature_set.ids_N), feature_set.stale_ids) == (24, [])
        colour = np.array(_shade("red", 3)) / 255
        np.testing.assert_allclose(feature_set.features_NE[3], colour / np.linalg.norm(colour), atol=1e-2)
        database.relabel("paint", feature_set.ids_N[:1], "green")
        assert (await client.get(FIT)).json()["report"]["n_examples"] == 24
        assert sum(map(len, model.batches)) == 24, "not once more"


async def test_one_labelled_example_without_picture_or_feature_is_an_error_before_any_work(serve, model, other_prompts):
    async with serve() as client:
        add_pictures(client.context.examples, 2)
        client.context.examples.add("paint", [colour_example("red", 99, "red")], actor="", source="upload")
        model.batches.clear()
        answer = await client.get(FIT)
    assert (answer.status_code, answer.json()["n_stale"], model.batches) == (409, 1, [])


async def test_labelled_and_unlabelled_examples_have_predictions_and_the_uncertain_ones_come_first(serve):
    async with serve() as client:
        database, fitter = client.context.examples, client.context.fitter
        labelled = [one.id for one in add_colours(database)]
        flipped = database.add("paint", [colour_example("blue", 70, "red")], actor="", source="upload")[0].id
        new = [colour_example("red", 50), colour_example("white", 51)]
        unlabelled = {one.id for one in database.add("paint", new, actor="", source="upload")}
        fit = await fitter.report("paint")
    assert fit.predictions.keys() == {*labelled, flipped} | unlabelled
    assert next(iter(fit.suspects(()))) == flipped
    assert fit.predictions[flipped].predicted == "blue"
    assert set(fit.uncertain_ids) == unlabelled
    margins = [fit.predictions[number].margin for number in fit.uncertain_ids]
    assert margins == sorted(margins)


async def test_the_current_fit_is_the_last_report_while_it_holds(serve, store):
    async with serve() as client:
        database, fitter = client.context.examples, client.context.fitter
        (first, *_) = add_colours(database)
        assert await fitter.current("paint") is None
        assert await fitter.current("nowhere") is None
        fit = await fitter.report("paint")
        assert await fitter.current("paint") is fit
        assert await fitter.report("paint") is fit
        database.relabel("paint", [first.id], "blue")
        assert await fitter.current("paint") is None
        fit = await fitter.report("paint")
        await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=5))
        assert await fitter.current("paint") is None


async def test_changes_by_another_process_change_the_fit(serve, store):
    async with serve() as client:
        add_colours(client.context.examples)
        before = (await client.get(FIT)).json()
        other = open_database(store.root)
        other.remove("paint", [1, 2])
        other.close()
        after = (await client.get(FIT)).json()
    assert (before["report"]["n_examples"], after["report"]["n_examples"]) == (24, 22)
    assert before["examples_digest"] != after["examples_digest"]


async def test_a_fit_that_is_too_large_is_refused_with_a_remedy(serve, monkeypatch):
    monkeypatch.setattr("service.examples.fit_process.MAX_SCORES", 24 * 3)
    async with serve() as client:
        add_colours(client.context.examples)
        assert (await client.get(FIT)).status_code == 200
        client.context.examples.add("paint", [colour_example("red", 99, "red")], actor="", source="upload")
        answer = await client.get(FIT)
    assert (answer.status_code, answer.json()["limit"]) == (422, 72)
    assert '"classes": "examples"' in answer.json()["detail"]


async def test_the_names_of_too_many_classes_are_not_encoded(serve, model, monkeypatch):
    monkeypatch.setattr("service.examples.fit_process.MAX_SCORES", 24 * 3)
    async with serve() as client:
        add_colours(client.context.examples, names={"red": "rose", "blue": "sky"})
        before = model.n_encoded_texts
        answer = await client.get(FIT)
    assert (answer.status_code, answer.json()["limit"]) == (422, 72)
    assert model.n_encoded_texts == before


async def test_the_fits_of_one_domain_delay_another_one_by_one_fit_at_most(serve, monkeypatch):
    computed = []
    async with serve() as client:
        for domain in ("paint", "ink"):
            add_colours(client.context.examples, domain)
        fitter, may_end = client.context.fitter, threading.Event()
        compute = fitter._process.run

        def slow(job):
            computed.append(job.method)
            assert may_end.wait(20)
            return compute(job)

        monkeypatch.setattr(fitter._process, "run", slow)
        methods = ("auto", "gda", "tip-adapter")
        of_paint = [asyncio.ensure_future(client.get(f"{FIT}?method={one}")) for one in methods]
        await until(lambda: computed)
        of_ink = asyncio.ensure_future(client.get("/domains/ink/fit?method=ridge&classes=examples"))
        await until(lambda: any(key.domain == "ink" for key in fitter._fits._loads))
        may_end.set()
        answers = [await one for one in (*of_paint, of_ink)]
    assert [one.status_code for one in answers] == [200] * 4
    assert computed[1] == "ridge", "the fit of ink is the second one"
    assert sorted(computed) == sorted((*methods, "ridge"))


async def test_images_are_classified_while_a_fit_runs(serve, monkeypatch):
    async with serve() as client:
        add_colours(client.context.examples)
        fitter, may_end = client.context.fitter, threading.Event()
        compute = fitter._process.run
        monkeypatch.setattr(fitter._process, "run", lambda job: may_end.wait(20) and compute(job))
        fitting = asyncio.ensure_future(client.post(FIT, json={}))
        await asyncio.sleep(0.05)
        answer = await client.post("/classify/paint", content=picture())
        assert (answer.status_code, answer.json()["version"], fitting.done()) == (200, 1, False)
        may_end.set()
        assert (await fitting).status_code == 201


@pytest.mark.parametrize("is_back", [False, True], ids=["removed", "an older copy"])
async def test_a_fit_is_not_that_of_a_database_that_was_replaced_meanwhile(serve, store, tmp_path, is_back):
    path, copy = store.root / "examples.sqlite3", tmp_path / "copy"
    async with serve() as client:
        database = client.context.examples
        if is_back:
            add_colours(database, names={"green": "green"}, n_each=4)
            shutil.copy(path, copy)
            shutil.copy(f"{path}-wal", f"{copy}-wal")
        add_colours(database)
        before = (await client.get(FIT)).json()
        database.close()
        for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            name.unlink(missing_ok=True)
        if is_back:
            shutil.move(f"{copy}-wal", f"{path}-wal")
            shutil.move(copy, path)
        add_colours(database, names={"red": "blue", "green": "green", "blue": "red"})  # as many changes as before
        after = (await client.get(FIT)).json()
        expected = database.labelled("paint", KEY).digest
    assert before["examples_digest"] != expected
    assert after["examples_digest"] == expected
