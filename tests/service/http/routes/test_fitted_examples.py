"""Lists of examples with a fit: predictions, suspicious labels, uncertain ones first."""

import pytest

from tests.service.examples.colours import add_colours, colour_example
from tests.service.fakes import colour_bundle

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True
URL = "/domains/paint/examples"


def add(client, *examples):
    return [one.id for one in client.context.examples.add("paint", examples, actor="anna", source="upload")]


async def listed(client, **query):
    answer = await client.get(URL, params={"limit": 1000} | query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_plain_list_never_computes_a_fit_and_shows_the_current_one(serve):
    async with serve() as client:
        add_colours(client.context.examples)
        (unlabelled,) = add(client, colour_example("red", 70))
        before = await listed(client)
        await client.get("/domains/paint/fit")
        fitted = await listed(client)
        add(client, colour_example("red", 71))
        outdated = await listed(client)
    for body in (before, outdated):
        assert body["based_on"] is None
        assert {(one["predicted"], one["margin"]) for one in body["examples"]} == {(None, None)}
    assert fitted["based_on"] == 1
    assert all(0 <= one["margin"] <= 1 for one in fitted["examples"])
    assert {one["id"]: one["predicted"] for one in fitted["examples"]}[unlabelled] == "red"
    right = [one["label"] == one["predicted"] for one in fitted["examples"] if one["label"]]
    assert sum(right) > len(right) / 2


async def test_wrong_labels_are_suspect_and_leave_the_list_when_they_are_corrected(serve):
    async with serve() as client:
        add_colours(client.context.examples, n_each=20)
        wrong = add(client, colour_example("red", 50, "blue"), colour_example("green", 60, "red"))
        body = await listed(client, suspect="true")
        reported = (await client.get("/domains/paint/fit")).json()["report"]["suspects"]
        assert {one["id"] for one in body["examples"]} >= set(wrong)
        assert [one["id"] for one in body["examples"]] == [one["id"] for one in reported], "the worst first"
        assert all(one["predicted"] != one["label"] for one in body["examples"])
        await client.patch(URL, json={"label": "red", "ids": [wrong[0]]})
        await client.patch(URL, json={"label": "green", "ids": [wrong[1]]})
        corrected = {one["id"] for one in (await listed(client, suspect="true"))["examples"]}
    assert not corrected & set(wrong)


async def test_suspects_can_be_narrowed_to_a_label(serve):
    async with serve() as client:
        add_colours(client.context.examples, n_each=20)
        (blue, _) = add(client, colour_example("red", 50, "blue"), colour_example("green", 60, "red"))
        body = await listed(client, suspect="true", label="blue")
    assert blue in [one["id"] for one in body["examples"]]
    assert {one["label"] for one in body["examples"]} == {"blue"}


async def test_unlabelled_examples_come_with_the_smallest_margin_first_in_pages(serve):
    async with serve() as client:
        add_colours(client.context.examples)
        ids = add(client, *(colour_example(colour, 100 + n) for colour in ("red", "green", "blue") for n in range(7)))
        whole = (await listed(client, order="uncertain"))["examples"]
        pages, after = [], 0
        while after is not None:
            body = await listed(client, order="uncertain", limit=4, after=after)
            pages += body["examples"]
            after = body["next"]
    assert pages == whole
    assert {one["id"] for one in whole} == set(ids)
    margins = [one["margin"] for one in whole]
    assert margins == sorted(margins)
    assert margins[0] < margins[-1]


@pytest.mark.parametrize("query", [{"suspect": "true"}, {"order": "uncertain"}])
async def test_without_enough_labels_there_is_no_fit_to_order_by(serve, query):
    async with serve() as client:
        add(client, colour_example("red", 1))
        answer = await client.get(URL, params=query)
        plain = await client.get(URL)
    assert (answer.status_code, answer.json()["code"]) == (409, "too_few_examples")
    assert plain.status_code == 200


async def test_a_version_with_other_image_prompts_leaves_examples_without_features_out(serve, store):
    async with serve() as client:
        add_colours(client.context.examples)
        plain = colour_bundle("paint", boost=False)
        await client.post("/domains/paint/versions?activate=true", content=plain)
        answer = await client.get(URL, params={"suspect": "true"})
        body = await listed(client)
    assert (answer.status_code, answer.json()["code"]) == (409, "examples_stale")
    assert len(body["examples"]) == 24
    assert body["based_on"] is None
