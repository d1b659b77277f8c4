import asyncio

import pytest

from prompt_store.bundle import read_bundle
from service.access.key_file import add_key, read_keys
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True


async def test_a_domain_made_from_names_answers_at_once(serve, store):
    async with serve() as client:
        answer = await client.put("/domains/signals", json={"classes": ["red", "green"]})
        body = answer.json()
        assert answer.status_code == 201, body
        assert answer.headers["location"] == "/domains/signals/versions/1"
        assert answer.headers["etag"] == f'"{body["digest"]}"'
        assert (body["version"], body["is_new"], body["is_live"]) == (1, True, True)
        assert (body["templates"], body["boosted_by"]) == (["a photo of a {}."], None)
        classified = await client.post("/classify/signals", content=picture("green"))
    assert classified.json()["results"][0]["predictions"][0]["label"] == "green"
    assert store.live("signals").digest == body["digest"]


async def test_boosting_prompts_are_copied_with_their_template(serve, store):
    async with serve() as client:
        answer = await client.put("/domains/signals", json={"classes": ["red", "green"], "boosted_by": "paint"})
        body = answer.json()
        assert answer.status_code == 201, body
    source, bundle = (read_bundle(store.read(domain, 1)) for domain in ("paint", "signals"))
    assert (bundle.tensors["image.boost"] == source.tensors["image.boost"]).all()
    assert body["boosted_by"] == {"domain": "paint", "version": 1, "digest": source.digest}
    assert body["templates"] == bundle.manifest.templates == source.manifest.templates
    made = bundle.manifest.provenance
    assert (made.method, made.phase) == ("zero-shot", "boost")
    assert made.data_digests == {"bundle": source.digest}


async def test_the_list_shows_which_domains_have_prompts_to_copy(serve, store):
    store.activate("plain", store.add("plain", colour_bundle("plain", boost=False)).version)
    store.add("draft", colour_bundle("draft"))
    async with serve() as client:
        listed = {one["domain"]: one["has_boosting"] for one in (await client.get("/domains")).json()["domains"]}
        bodies = {name: {"classes": ["red", "green"], "boosted_by": name} for name in listed}
        answers = {name: await client.put(f"/domains/from-{name}", json=body) for name, body in bodies.items()}
    assert listed == {"draft": False, "ink": True, "paint": True, "plain": False}
    assert {name for name, answer in answers.items() if answer.is_success} == {name for name in listed if listed[name]}


async def test_a_created_domain_is_logged_with_its_actor(serve, caplog):
    caplog.set_level("INFO")
    async with serve() as client:
        await client.put("/domains/signals", json={"classes": ["red", "green"], "boosted_by": "paint"})
    (record,) = [one for one in caplog.records if one.getMessage() == "domain.created"]
    assert (record.domain, record.n_classes, record.boosted_by, record.actor) == ("signals", 2, "paint", "")


async def test_prompts_are_copied_only_from_domains_of_the_key(serve, tmp_path):
    file = tmp_path / "keys.json"
    key = add_key(file, ["publish", "activate"], ["signals"])
    async with serve(keys=read_keys(file)) as client:
        headers = {"Authorization": f"Bearer {key}"}
        body = {"classes": ["red", "green"]}
        denied = await client.put("/domains/signals", json=body | {"boosted_by": "paint"}, headers=headers)
        assert (denied.status_code, denied.json()["code"]) == (403, "denied")
        assert (await client.put("/domains/other", json=body, headers=headers)).status_code == 403
        assert (await client.put("/domains/signals", json=body, headers=headers)).status_code == 201


async def test_the_answer_shows_names_and_templates_as_they_are_kept(serve, store):
    body = {"classes": [" traffic_light ", "stop  sign"], "templates": ["a {} at night."]}
    async with serve() as client:
        answer = (await client.put("/domains/signals", json=body)).json()
        shown = (await client.get("/domains/signals")).json()
    assert answer["classes"] == shown["classes"] == ["traffic light", "stop sign"]
    manifest = read_bundle(store.read("signals", 1)).manifest
    assert manifest.templates == answer["templates"] == ["a {} at night."]


async def test_an_existing_domain_stays_as_it_is(serve, store):
    store.add("draft", colour_bundle("draft"))
    async with serve() as client:
        for domain in ("paint", "draft"):
            answer = await client.put(f"/domains/{domain}", json={"classes": ["red", "green"]})
            assert (answer.status_code, answer.json()["code"]) == (409, "domain_exists")
            assert len(store.versions(domain)) == 1


async def test_of_concurrent_requests_for_one_name_one_creates_it(serve, store):
    async with serve() as client:
        bodies = [{"classes": ["red", name]} for name in ("green", "blue", "white")]
        answers = await asyncio.gather(*(client.put("/domains/signals", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
    assert len(store.versions("signals")) == 1


@pytest.mark.parametrize(
    ("domain", "body", "status", "code"),
    [
        ("signals", {"classes": []}, 422, "request_invalid"),
        ("signals", {"classes": ["red", "RED"]}, 422, "class_name"),
        ("signals", {"classes": ["red", " "]}, 422, "class_name"),
        ("signals", {"classes": ["red", "Unlabelled"]}, 422, "class_name"),
        ("signals", {"classes": ["red"], "templates": ["no braces"]}, 422, "request_invalid"),
        ("signals", {"classes": ["red"], "template": "a {}"}, 422, "request_invalid"),
        (
            "signals",
            {"classes": [str(n) for n in range(6000)], "templates": ["{}", "a {}"]},
            422,
            "request_invalid",
        ),
        ("signals", {"classes": ["red", "x" * 61]}, 422, "text_too_long"),
        ("signals", {"classes": ["red"], "boosted_by": "nowhere"}, 404, "domain_not_found"),
        ("signals", {"classes": ["red"], "boosted_by": "plain"}, 422, "stack_unsupported"),
        ("Signals", {"classes": ["red"]}, 422, "name_invalid"),
        ("v2", {"classes": ["red"]}, 422, "name_invalid"),
    ],
)
async def test_an_invalid_request_creates_nothing(serve, store, domain, body, status, code):
    store.activate("plain", store.add("plain", colour_bundle("plain", boost=False)).version)
    async with serve() as client:
        answer = await client.put(f"/domains/{domain}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.json()
        assert len((await client.get("/domains")).json()["domains"]) == 3
    assert store.domains() == ["ink", "paint", "plain"]


async def test_an_invalid_domain_name_has_a_title_of_its_own(serve):
    async with serve() as client:
        answer = await client.put("/domains/Signals", json={"classes": ["red"]})
    assert answer.json()["title"] == "Invalid domain name"


async def test_texts_are_encoded_in_parts_between_which_images_run(serve, model):
    calls, encode = [], model.with_labels
    model.with_labels = lambda stack, labels: calls.append(len(labels)) or encode(stack, labels)
    async with serve() as client:
        body = {"classes": [f"red-{n}" for n in range(100)], "templates": ["{}.", "a {}."]}
        assert (await client.put("/domains/signals", json=body)).status_code == 201
    assert calls == [32, 32, 32, 4]


async def test_a_template_without_braces_is_explained(serve):
    body = {"classes": ["red", "green"], "templates": ["a photo"]}
    async with serve() as client:
        problem = (await client.put("/domains/signals", json=body)).json()
    assert problem["detail"] == "body.templates.0: a template must contain {} exactly once and no other braces"
