"""`/domains/{domain}/fit` with the colour model."""

import asyncio
import datetime

import pytest

from prompt_store.bundle import read_bundle
from prompted_clip.few_shot import FEW_SHOT_METHODS
from prompted_clip.fit_report import AUTO
from service.access.key_file import add_key, read_keys
from service.http.schemas import FitQuery
from tests.service.examples.colours import add_colours, colour_example
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True
FIT = "/domains/paint/fit"


async def test_the_report_makes_no_version(serve, store):
    async with serve() as client:
        added = add_colours(client.context.examples)
        flipped = client.context.examples.add(
            "paint", [colour_example("red", 99, "blue")], actor="anna", source="upload"
        )
        answer = await client.get(FIT)
        body = answer.json()
        assert answer.status_code == 200, body
        assert len((await client.get("/domains/paint/versions")).json()["versions"]) == 1
    assert body["based_on"] == {"domain": "paint", "version": 1, "digest": store.live("paint").digest}
    assert (body["classes"], body["method"], body["new_classes"]) == ("own", "auto", [])
    report = body["report"]
    assert report["n_examples"] == len(added) + 1
    assert [one["name"] for one in report["classes"]] == ["red", "green", "blue"]
    assert report["suspects"][0] | {"probability": 0} == {
        "id": flipped[0].id, "label": "blue", "predicted": "red", "probability": 0, "name": None,
    }  # fmt: skip


async def test_a_fit_is_a_version_that_is_live_when_the_answer_arrives(serve, store):
    async with serve() as client:
        add_colours(client.context.examples)
        answer = await client.post(FIT, json={})
        body = answer.json()
        assert answer.status_code == 201, body
        assert answer.headers["location"] == "/domains/paint/versions/2"
        assert answer.headers["etag"] == f'"{body["digest"]}"'
        assert (body["version"], body["is_new"], body["is_live"]) == (2, True, True)
        assert body["report"]["accuracy"]["rate"] > 0.5
        classified = (await client.post("/classify/paint", content=picture())).json()
        assert (classified["version"], classified["digest"]) == (2, body["digest"])
        history = (await client.get("/domains/paint/history")).json()["history"]
        rolled_back = await client.post("/domains/paint/rollback")
        assert (rolled_back.status_code, rolled_back.json()["version"]) == (200, 1)
    assert [one["action"] for one in history[-2:]] == ["publish", "activate"]
    bundle = read_bundle(store.read("paint", 2))
    made = bundle.manifest.provenance
    assert (made.method, made.recipe["method"]) == (body["report"]["method"], "auto")
    assert made.data_digests == {
        "examples": body["examples_digest"],
        "bundle": read_bundle(store.read("paint", 1)).digest,
    }
    assert made.metrics["n_images_by_class"] == {"red": 8, "green": 8, "blue": 8}
    assert made.metrics["leave_one_out_accuracy"] == body["report"]["accuracy"]["rate"]
    assert bundle.manifest.calibration.abstain == body["report"]["abstain"]


async def test_a_fit_is_logged_with_its_version_and_its_actor(serve, caplog):
    caplog.set_level("INFO")
    async with serve() as client:
        add_colours(client.context.examples)
        body = (await client.post(FIT, json={})).json()
    (record,) = [one for one in caplog.records if one.getMessage() == "domain.fitted"]
    found = (record.domain, record.version, record.based_on, record.method, record.n_examples, record.actor)
    assert found == ("paint", 2, 1, body["report"]["method"], 24, "")


async def test_a_fit_without_a_body_has_the_defaults(serve):
    async with serve() as client:
        add_colours(client.context.examples)
        body = (await client.post(FIT)).json()
    assert (body["is_live"], body["classes"], body["method"]) == (True, "own", "auto")


async def test_without_activation_the_live_version_stays(serve, store):
    async with serve() as client:
        add_colours(client.context.examples)
        body = (await client.post(FIT, json={"activate": False})).json()
    assert (body["version"], body["is_live"]) == (2, False)
    assert store.live("paint").version == 1


async def test_new_labels_become_classes(serve, store):
    async with serve() as client:
        add_colours(client.context.examples, names={"red": "red", "white": "white", "green": "leaf green"})
        body = (await client.post(FIT, json={})).json()
        shown = (await client.get("/domains/paint")).json()["classes"]
    assert body["new_classes"] == ["leaf green", "white"]
    assert shown == ["red", "green", "blue", "leaf green", "white"]


async def test_only_the_classes_of_the_examples_on_request(serve):
    async with serve() as client:
        add_colours(client.context.examples, names={"blue": "blue", "white": "white"})
        body = (await client.post(FIT, json={"classes": "examples"})).json()
        shown = (await client.get("/domains/paint")).json()["classes"]
    assert (shown, body["new_classes"]) == (["blue", "white"], ["white"])


async def test_spellings_that_differ_in_case_are_one_class_named_as_in_the_version_or_most_often(serve):
    async with serve() as client:
        database = client.context.examples
        add_colours(database, names={"red": "RED", "blue": "Navy"})
        database.add("paint", [colour_example("blue", 50, "navy")], actor="", source="upload")
        report = (await client.get(FIT)).json()["report"]
    counts = {one["name"]: one["n_examples"] for one in report["classes"]}
    assert counts == {"red": 8, "green": 0, "blue": 0, "Navy": 9}


async def test_a_fit_can_be_based_on_another_version(serve, store):
    store.add("paint", colour_bundle("paint", ("red", "green", "blue", "white"), seed=1))
    async with serve() as client:
        add_colours(client.context.examples)
        report = (await client.get(FIT, params={"based_on": 2})).json()
        fitted = (await client.post(FIT, json={"based_on": 2, "method": "ridge"})).json()
        live = (await client.get(FIT, params={"based_on": "live"})).json()
    assert (report["based_on"]["version"], fitted["based_on"]["version"], live["based_on"]["version"]) == (2, 2, 3)
    assert len(report["report"]["classes"]) == 4
    assert fitted["report"]["method"] in {"ridge", "text"}


async def test_a_known_report_is_not_sent_again_until_something_changes(serve):
    async with serve() as client:
        (first, *_) = add_colours(client.context.examples)
        tag = (await client.get(FIT)).headers["etag"]
        again = await client.get(FIT, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert (await client.get(FIT, params={"method": "ridge"}, headers={"If-None-Match": tag})).status_code == 200
        client.context.examples.relabel("paint", [first.id], "blue")
        changed = await client.get(FIT, headers={"If-None-Match": tag})
        assert (changed.status_code, changed.headers["etag"] != tag) == (200, True)


async def test_concurrent_requests_share_one_computation(serve):
    async with serve() as client:
        add_colours(client.context.examples)
        answers = await asyncio.gather(*(client.get(FIT) for _ in range(5)), client.post(FIT, json={}))
        metrics = (await client.get("/metrics")).text
    assert {answer.status_code for answer in answers} == {200, 201}
    assert len({answer.json()["revision"] for answer in answers}) == 1
    assert 'caspl_fits_total{domain="paint",result="computed"} 1.0' in metrics


async def test_concurrent_fits_leave_one_live_version_and_no_gaps(serve, store):
    async with serve() as client:
        add_colours(client.context.examples)
        bodies = [{"method": "gda"}, {"method": "ridge"}, {"classes": "examples"}, {"activate": False}]
        answers = await asyncio.gather(*(client.post(FIT, json=body) for body in bodies))
        versions = [info.version for info in store.versions("paint")]
    assert all(answer.is_success for answer in answers)
    assert sorted({answer.json()["version"] for answer in answers} | {1}) == versions
    assert store.live("paint").version in versions[1:]


async def test_a_published_fit_is_also_the_report_of_its_version_without_a_computation(serve, store):
    async with serve() as client:
        add_colours(client.context.examples, names={"red": "red", "white": "white", "blue": "blue"})
        fitted = (await client.post(FIT, json={"classes": "examples"})).json()
        cached = (await client.get(FIT)).json()
        assert 'caspl_fits_total{domain="paint",result="computed"} 1.0' in (await client.get("/metrics")).text
    async with serve() as client:
        computed = (await client.get(FIT)).json()
    assert cached == computed
    assert (cached["based_on"]["version"], cached["based_on"]["digest"]) == (2, fitted["digest"])
    assert (cached["report"], cached["classes"], cached["new_classes"]) == (fitted["report"], "own", [])


async def test_a_fit_that_exists_already_is_made_live_again(serve, monkeypatch):
    class StoppedClock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr("prompted_clip.provenance.datetime.datetime", StoppedClock)
    async with serve() as client:
        add_colours(client.context.examples)
        bodies = [{"based_on": 1, "method": method} for method in ("gda", "ridge", "gda")]
        answers = [await client.post(FIT, json=body) for body in bodies]
    assert [answer.status_code for answer in answers] == [201, 201, 200]
    assert [answer.json()["version"] for answer in answers] == [2, 3, 2]
    assert [(answer.json()["is_new"], answer.json()["is_live"]) for answer in answers[1:]] == [
        (True, True),
        (False, True),
    ]


async def test_unlabelled_examples_are_used_on_request(serve, store):
    async with serve() as client:
        database = client.context.examples
        add_colours(database, n_each=2)
        others = [colour_example(colour, n) for colour in ("red", "green", "blue") for n in range(50, 70)]
        database.add("paint", others, actor="", source="upload")
        plain = (await client.get(FIT)).json()
        body = (await client.post(FIT, json={"unlabelled": True})).json()
        refused = await client.get(FIT, params={"unlabelled": True, "method": "ridge"})
    assert (plain["unlabelled"], plain["report"]["n_unlabelled"]) == (False, 0)
    assert (body["unlabelled"], body["report"]["n_unlabelled"]) == (True, 60)
    made = read_bundle(store.read("paint", 2)).manifest.provenance
    assert made.data_digests.keys() == {"examples", "unlabelled", "bundle"}
    assert (refused.status_code, refused.json()["code"]) == (422, "request_invalid")
    assert "auto and gda" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (("ink", {}), 409, "too_few_examples"),
        (("nowhere", {}), 404, "domain_not_found"),
        (("paint", {"based_on": 9}), 404, "version_not_found"),
        (("paint", {"based_on": 0}), 422, "request_invalid"),
        (("paint", {"method": "magic"}), 422, "request_invalid"),
        (("paint", {"classes": "all"}), 422, "request_invalid"),
        (("paint", {"version": 1}), 422, "request_invalid"),
    ],
)
async def test_an_invalid_request_changes_nothing(serve, store, request_, status, code):
    domain, body = request_
    async with serve() as client:
        add_colours(client.context.examples)
        for answer in (
            await client.get(f"/domains/{domain}/fit", params=body),
            await client.post(f"/domains/{domain}/fit", json=body),
        ):
            assert (answer.status_code, answer.json()["code"]) == (status, code), answer.json()
    assert [len(store.versions(one)) for one in store.domains()] == [1, 1]


async def test_one_class_is_too_few(serve):
    async with serve() as client:
        add_colours(client.context.examples, names={"red": "red"})
        answer = await client.get(FIT, params={"classes": "examples"})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_few_examples")
    assert "at least two classes" in answer.json()["detail"]


async def test_a_new_class_that_cannot_be_encoded_is_an_error_with_the_reason(serve):
    async with serve() as client:
        add_colours(client.context.examples, names={"red": "red", "blue": "b" * 61})
        answer = await client.post(FIT, json={})
    assert (answer.status_code, answer.json()["code"]) == (422, "text_too_long")


async def test_fits_need_the_scope_teach_and_to_go_live_also_activate(serve, tmp_path):
    file = tmp_path / "keys.json"
    teacher, activator = add_key(file, ["teach"], []), add_key(file, ["teach", "activate"], [])
    async with serve(keys=read_keys(file)) as client:
        add_colours(client.context.examples)
        headers = {"Authorization": f"Bearer {teacher}"}
        assert (await client.get(FIT, headers=headers)).status_code == 200
        assert (await client.post(FIT, json={"activate": False}, headers=headers)).status_code == 201
        denied = await client.post(FIT, json={}, headers=headers)
        assert (denied.status_code, denied.json()["code"]) == (403, "denied")
        allowed = await client.post(FIT, json={}, headers={"Authorization": f"Bearer {activator}"})
        assert allowed.json()["is_live"]


def test_the_methods_of_the_interface_are_those_of_the_library():
    choices = FitQuery.model_json_schema()["properties"]["method"]["enum"]
    assert choices == [AUTO, *FEW_SHOT_METHODS]
