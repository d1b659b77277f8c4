"""Listing, showing, labelling and removing examples."""

import hashlib
import json
import logging
from itertools import chain, count

import pytest

from service.access.key_file import add_key, read_keys
from service.examples.records import NewExample
from service.http.routes.labelling import ExamplesOut
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True
URL = "/domains/paint/examples"
WEBP = b"RIFF\0\0\0\0WEBP"
NUMBERS = count()


def fill(client, *labels, domain="paint"):
    """Add an example per label, without its image; returns their ids."""
    new = [NewExample(label, hashlib.sha256(str(next(NUMBERS)).encode()).hexdigest(), WEBP) for label in labels]
    return [one.id for one in client.context.examples.add(domain, new, actor="anna", source="upload")]


def labels(client):
    return {one.id: one.label for one in client.context.examples.page("paint", limit=1000)}


async def pages(client, **query):
    """Ids of every page until the last one."""
    found, after = [], 0
    while after is not None:
        answer = await client.get(URL, params=query | {"after": after})
        assert answer.status_code == 200, answer.text
        found.append([one["id"] for one in answer.json()["examples"]])
        after = answer.json()["next"]
    return found


async def test_a_domain_without_examples_has_an_empty_page(serve):
    async with serve() as client:
        answer = await client.get(URL)
    assert answer.json() == {
        "domain": "paint",
        "examples": [],
        "next": None,
        "counts": {"labelled": 0, "unlabelled": 0, "by_label": {}, "n_bytes": 0},
        "based_on": None,
    }


async def test_an_example_is_listed_with_its_label_its_origin_and_the_numbers_of_all(serve):
    async with serve() as client:
        fill(client, "red", None, "red", "blue")
        body = (await client.get(URL, params={"limit": 1})).json()
    (example,) = body["examples"]
    assert example.pop("added_at").endswith("Z")
    assert example == {
        "id": 1, "label": "red", "predicted": None, "margin": None, "is_confirmed": False, "source": "upload",
        "added_by": "anna", "name": None,
    }  # fmt: skip
    assert body["counts"] == {
        "labelled": 3, "unlabelled": 1, "by_label": {"blue": 1, "red": 2}, "n_bytes": 4 * len(WEBP),
    }  # fmt: skip


async def test_10000_examples_come_in_pages_each_exactly_once(serve):
    async with serve() as client:
        ids = fill(client, *(f"class {n % 7}" if n % 3 else None for n in range(10_000)))
        whole = await pages(client, limit=1000)
        odd = await pages(client, limit=999)
        one_label = await pages(client, limit=500, label="class 4")
        unlabelled = await pages(client, limit=1000, labelled="false")
    assert list(chain(*whole)) == list(chain(*odd)) == ids
    assert [len(page) for page in whole] == [1000] * 10
    assert [len(page) for page in odd] == [999] * 10 + [10]
    assert list(chain(*one_label)) == [number for n, number in enumerate(ids) if n % 7 == 4 and n % 3]
    assert list(chain(*unlabelled)) == ids[::3]


async def test_examples_that_are_added_or_removed_between_pages_move_no_others(serve):
    async with serve() as client:
        ids = fill(client, *["red"] * 6)
        first = (await client.get(URL, params={"limit": 3})).json()
        await client.delete(f"{URL}/{ids[0]}")
        added = fill(client, "blue")
        rest = (await client.get(URL, params={"limit": 10, "after": first["next"]})).json()
    assert [one["id"] for one in first["examples"]] == ids[:3]
    assert [one["id"] for one in rest["examples"]] == ids[3:] + added
    assert rest["next"] is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("label=red", [1, 3]),
        ("label=%20red_", [1, 3]),
        ("label=nothing", []),
        ("label=unlabelled", [2]),
        ("labelled=true", [1, 3, 4]),
        ("labelled=false", [2]),
        ("label=red&labelled=true", [1, 3]),
        ("label=unlabelled&labelled=false", [2]),
        ("after=2", [3, 4]),
        (f"after={2**53}", []),
    ],
)
async def test_a_list_can_be_narrowed(serve, query, expected):
    async with serve() as client:
        fill(client, "red", None, "red", "dark blue")
        answer = await client.get(f"{URL}?{query}")
    assert [one["id"] for one in answer.json()["examples"]] == expected


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "request_invalid"),
        ("limit=1001", "request_invalid"),
        ("after=-1", "request_invalid"),
        (f"after={2**53 + 1}", "request_invalid"),
        ("after=x", "request_invalid"),
        ("labelled=maybe", "request_invalid"),
        ("order=random", "request_invalid"),
        ("suspect=maybe", "request_invalid"),
        ("suspect=true&labelled=false", "request_invalid"),
        ("suspect=true&order=uncertain", "request_invalid"),
        ("order=uncertain&label=red", "request_invalid"),
        ("order=uncertain&labelled=true", "request_invalid"),
        ("unknown=1", "request_invalid"),
        ("label=", "label_invalid"),
        ("label=a%07b", "label_invalid"),
        ("label=%FF", "request_invalid"),
        ("label=red&labelled=false", "request_invalid"),
        ("label=unlabelled&labelled=true", "request_invalid"),
    ],
)
async def test_a_query_that_makes_no_sense_is_422(serve, query, code):
    async with serve() as client:
        answer = await client.get(f"{URL}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, code)


async def test_an_example_is_found_under_its_own_domain_only(serve):
    async with serve() as client:
        fill(client, "red")
        answers = [
            await client.get("/domains/ink/examples/1/thumbnail"),
            await client.get(f"{URL}/2/thumbnail"),
            await client.get(f"{URL}/{2**53}/thumbnail"),
            await client.patch("/domains/ink/examples", json={"label": "blue", "ids": [1]}),
            await client.delete("/domains/ink/examples/1"),
        ]
        ignored = await client.delete("/domains/ink/examples?ids=1")
        assert labels(client) == {1: "red"}
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(404, "example_not_found")}
    assert ignored.json() == {"domain": "ink", "removed": 0}


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "x", str(2**53 + 1), "9" * 30])
async def test_only_a_positive_integer_is_an_id(serve, number):
    async with serve() as client:
        answers = [await client.get(f"{URL}/{number}/thumbnail"), await client.delete(f"{URL}/{number}")]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(422, "request_invalid")}


@pytest.mark.parametrize(
    ("label", "stored"), [("blue", "blue"), ("dark__blue ", "dark blue"), (None, None), ("unlabelled", None)]
)
async def test_examples_are_relabelled_together(serve, label, stored):
    async with serve() as client:
        fill(client, "red", "red", None)
        answer = await client.patch(URL, json={"label": label, "ids": [1, 3]})
        assert labels(client) == {1: stored, 2: "red", 3: stored}
    assert answer.json() == {"domain": "paint", "label": stored, "changed": 1 if stored is None else 2}


async def test_10000_examples_are_relabelled_and_removed_in_one_call(serve):
    async with serve() as client:
        ids = fill(client, *["red"] * 10_000)
        relabelled = await client.patch(URL, json={"label": "blue", "ids": ids})
        counts = (await client.get(URL)).json()["counts"]
        removed = await client.delete(f"{URL}?all=true")
    assert relabelled.json() == {"domain": "paint", "label": "blue", "changed": 10_000}
    assert counts["by_label"] == {"blue": 10_000}
    assert removed.json() == {"domain": "paint", "removed": 10_000}


async def test_relabelling_an_unknown_example_changes_none(serve):
    async with serve() as client:
        fill(client, "red", "red")
        answer = await client.patch(URL, json={"label": "blue", "ids": [1, 7, 2, 9]})
        assert labels(client) == {1: "red", 2: "red"}
    assert (answer.status_code, answer.json()["code"]) == (404, "example_not_found")
    assert answer.json()["ids"] == [7, 9]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"ids": [1]}, 422, "request_invalid"),
        ({"label": "blue"}, 422, "request_invalid"),
        ({"label": "blue", "ids": []}, 422, "request_invalid"),
        ({"label": "blue", "ids": [0]}, 422, "request_invalid"),
        ({"label": "blue", "ids": [2**53 + 1]}, 422, "request_invalid"),
        ({"label": "blue", "ids": [True]}, 422, "request_invalid"),
        ({"label": "blue", "ids": ["1"]}, 422, "request_invalid"),
        ({"label": "blue", "ids": [1.0]}, 422, "request_invalid"),
        ({"label": "blue", "ids": 1}, 422, "request_invalid"),
        ({"label": "blue", "ids": [1], "all": True}, 422, "request_invalid"),
        ({"label": 3, "ids": [1]}, 422, "request_invalid"),
        ({"label": "", "ids": [1]}, 422, "label_invalid"),
        ({"label": "x" * 129, "ids": [1]}, 422, "label_invalid"),
        ([1], 422, "request_invalid"),
        ({"label": "blue", "ids": list(range(1, 60_000))}, 413, "too_large"),
    ],
    ids=range(15),
)
async def test_a_change_of_another_form_is_refused(serve, body, status, code):
    async with serve() as client:
        fill(client, "red")
        answer = await client.patch(URL, content=json.dumps(body), headers={"content-type": "application/json"})
        assert labels(client) == {1: "red"}
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"label": "\xff", "ids": [1]}', "application/json", 400),
        (b'{"label": "red", "ids": [1', "application/json", 422),
        (b"", "application/json", 422),
        (b'{"label": "red", "ids": [1]}', "text/plain", 422),
        (b"[" * 100_000, "application/json", 400),
        (b'{"label": "red", "ids": [' + b"9" * 100_000 + b"]}", "application/json", 400),
    ],
    ids=range(6),
)
async def test_a_change_that_is_not_json_is_refused(serve, content, kind, status):
    async with serve() as client:
        fill(client, "blue")
        answer = await client.patch(URL, content=content, headers={"content-type": kind})
        assert labels(client) == {1: "blue"}
    assert (answer.status_code, answer.json()["code"]) == (status, "request_invalid")
    assert "JSON" in answer.json()["detail"] or status == 422


@pytest.mark.parametrize(
    ("query", "removed"), [("ids=2", [2]), ("ids=1,3", [1, 3]), ("ids=1,99,1", [1]), ("all=true", [1, 2, 3])]
)
async def test_examples_are_removed_together_and_others_stay(serve, query, removed):
    async with serve() as client:
        fill(client, "red", None, "blue")
        fill(client, "red", domain="ink")
        answers = [await client.delete(f"{URL}?{query}") for _ in range(2)]
        assert set(labels(client)) == {1, 2, 3} - set(removed)
        assert client.context.examples.counts("ink").labelled == 1
    assert [answer.json()["removed"] for answer in answers] == [len(removed), 0], "a second time is no error"


async def test_one_example_is_removed_once(serve):
    async with serve() as client:
        fill(client, "red", "blue")
        first = await client.delete(f"{URL}/1")
        second = await client.delete(f"{URL}/1")
        assert labels(client) == {2: "blue"}
    assert (first.status_code, first.content) == (204, b"")
    assert (second.status_code, second.json()["code"]) == (404, "example_not_found")


@pytest.mark.parametrize(
    "query", ["", "all=false", "ids=1&all=true", "ids=", "ids=1,", "ids=x", "ids=-1", f"ids={10**16}", "id=1"]
)
async def test_removing_names_ids_or_all(serve, query):
    async with serve() as client:
        fill(client, "red")
        answer = await client.delete(f"{URL}?{query}")
        assert labels(client) == {1: "red"}
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


CALLS = {
    "list": ("GET", "", {}),
    "show": ("GET", "/1/thumbnail", {}),
    "relabel": ("PATCH", "", {"json": {"label": "blue", "ids": [1]}}),
    "remove": ("DELETE", "?all=true", {}),
    "remove one": ("DELETE", "/1", {}),
}


@pytest.mark.parametrize("call", CALLS)
async def test_an_unknown_domain_is_404_and_a_domain_that_is_not_live_keeps_its_examples(serve, store, call):
    method, path, options = CALLS[call]
    store.add("draft", colour_bundle("draft"))
    async with serve() as client:
        fill(client, *["red"] * 10, domain="draft")
        unknown = await client.request(method, f"/domains/nowhere/examples{path}", **options)
        known = await client.request(method, f"/domains/draft/examples{path}", **options)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "domain_not_found")
    assert known.is_success


@pytest.mark.parametrize("call", CALLS)
async def test_only_a_key_with_the_scope_and_the_domain_is_served(serve, tmp_path, call):
    method, path, options = CALLS[call]
    file = tmp_path / "keys.json"
    keys = [add_key(file, ["classify", "publish", "activate"], []), add_key(file, ["teach"], ["ink"])]
    keys.append(add_key(file, ["teach"], ["paint"]))
    async with serve(read_keys(file)) as client:
        fill(client, "red")
        answers = [
            await client.request(method, URL + path, headers={"authorization": f"Bearer {key}"}, **options)
            for key in keys
        ]
        without = await client.request(method, URL + path, **options)
    assert without.status_code == 401
    assert [answer.status_code for answer in answers[:2]] == [403, 403]
    assert answers[2].is_success


async def test_changes_are_recorded_with_the_key(serve, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    key = add_key(tmp_path / "keys.json", ["teach"], [])
    async with serve(read_keys(tmp_path / "keys.json")) as client:
        fill(client, "red", "red", "red")
        headers = {"authorization": f"Bearer {key}"}
        await client.patch(URL, json={"label": "blue", "ids": [1, 2]}, headers=headers)
        await client.delete(f"{URL}?ids=1,2", headers=headers)
        await client.delete(f"{URL}/3", headers=headers)
    records = [record for record in caplog.records if record.message.startswith("example.")]
    assert [(record.message, record.domain, record.n) for record in records] == [
        ("example.relabelled", "paint", 2),
        ("example.removed", "paint", 2),
        ("example.removed", "paint", 1),
    ]
    assert {record.actor for record in records} == {key.split("_")[1]}


@pytest.mark.parametrize("path", [URL, f"{URL}/1", f"{URL}/1/thumbnail"])
async def test_another_method_is_405_with_the_methods_that_work(serve, path):
    expected = {
        URL: "DELETE, GET, HEAD, OPTIONS, PATCH, POST",
        f"{URL}/1": "DELETE, OPTIONS",
        f"{URL}/1/thumbnail": "GET, HEAD, OPTIONS",
    }
    async with serve() as client:
        answer = await client.put(path)
        options = await client.options(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, expected[path])
    assert (options.status_code, options.headers["allow"]) == (204, expected[path])


async def test_a_label_is_found_in_every_spelling(serve):
    async with serve() as client:
        first, second = fill(client, "White", "red")
        assert await pages(client, label="white") == [[first]]
        assert await pages(client, label="RED") == [[second]]


@pytest.mark.parametrize("label", ["unlabelled", "Unlabelled", "\uff35nlabelled"])
async def test_unlabelled_in_every_spelling_is_no_label(serve, label):
    async with serve() as client:
        (example,) = fill(client, "red")
        assert (await client.patch(URL, json={"label": label, "ids": [example]})).json()["label"] is None
        body = (await client.post(URL, files=[(label, ("a.png", picture("red")))])).json()
        assert body["examples"][0]["label"] is None
        assert labels(client) == {example: None, body["examples"][0]["id"]: None}


async def test_repeated_ids_are_all_removed(serve):
    async with serve() as client:
        ids = fill(client, "red", "red", "blue", "blue")
        answer = await client.delete(f"{URL}?ids={ids[0]}&ids={ids[1]},{ids[3]}")
        assert answer.json() == {"domain": "paint", "removed": 3}
        assert list(labels(client)) == [ids[2]]


async def test_a_page_has_the_fields_of_its_schema(serve):
    async with serve() as client:
        fill(client, "red", None)
        text = (await client.get(URL)).text
    assert ExamplesOut.model_validate_json(text).model_dump(mode="json") == json.loads(text)
