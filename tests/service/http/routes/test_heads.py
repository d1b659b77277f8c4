"""Bundles with heads through the whole application and the real model, on a tiny backbone with random weights."""

import asyncio

import pytest

from prompt_store.bundle import read_bundle
from prompt_store.store import Store
from prompted_clip.model import PromptedClip
from tests.service.fakes import picture
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

CONDITIONAL = {"head": "conditional", "text_boost": (2, 2), "text_adapt": (1, 3)}
CLASSES = ("cat", "dog", "bird")


@pytest.fixture
def model():
    return PromptedClip(tiny_backbone(), max_conditional_classes=4)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def labels_of(answer):
    (result,) = answer.json()["results"]
    assert sum(one["probability"] for one in result["predictions"]) == pytest.approx(1, abs=1e-5)
    return {one["label"] for one in result["predictions"]}


async def test_a_conditional_bundle_uploads_activates_and_answers(serve, store):
    data = random_bundle("birds", CLASSES, **CONDITIONAL)
    async with serve() as client:
        uploaded = await client.post("/domains/birds/versions", content=data)
        assert (uploaded.status_code, uploaded.json()["is_live"]) == (201, False)
        live = await client.put("/domains/birds/live", json={"version": 1})
        assert live.status_code == 200, live.text
        answer = await client.post("/classify/birds", content=picture("green"))
        opened = await client.post("/classify/birds?labels=heron,kettle", content=picture("green"))
        boosted = await client.post("/classify/birds?stack=boost", content=picture("green"))
        shown = (await client.get("/domains/birds/versions/1")).json()["manifest"]["stack"]
    assert answer.status_code == 200, answer.text
    assert (answer.json()["version"], answer.json()["digest"]) == (1, read_bundle(data).digest)
    assert labels_of(answer) == labels_of(boosted) == set(CLASSES)
    assert labels_of(opened) == {"heron", "kettle"}
    assert shown["head"] == "conditional"
    assert store.live("birds").version == 1


@pytest.mark.parametrize("head", ["class", "projector"])
async def test_a_bundle_with_a_head_goes_live_and_says_which_labels_it_can_choose_among(serve, head):
    labels = "own" if head == "projector" else "any"
    async with serve() as client:
        data = random_bundle("birds", CLASSES, head=head, labels=labels)
        uploaded = await client.post("/domains/birds/versions?activate=true", content=data)
        answer = await client.post("/classify/birds", content=picture("green"))
        opened = await client.post("/classify/birds?labels=heron,kettle", content=picture("green"))
    assert uploaded.status_code == 201, uploaded.text
    assert labels_of(answer) == set(CLASSES)
    if labels == "any":
        assert labels_of(opened) == {"heron", "kettle"}
    else:
        assert (opened.status_code, opened.json()["code"]) == (422, "stack_unsupported")
        assert "its own 3 classes" in opened.json()["detail"]


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        ({"class_names": tuple("abcde")}, "stack_mismatch", "max_conditional_classes"),
        ({"class_names": ("cat", "cat " * 30 + "cat"), "templates": ["{}" + " cat" * 45]}, "text_too_long", "tokens"),
    ],
)
async def test_a_conditional_bundle_that_cannot_run_here_is_refused_before_it_is_stored(
    serve, store, options, code, word
):
    async with serve() as client:
        data = random_bundle("birds", **(CONDITIONAL | options))
        answer = await client.post("/domains/birds/versions?activate=true", content=data)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert word in answer.json()["detail"]
    assert list(store.domains()) == []


async def test_too_many_labels_for_a_conditional_head_are_refused_with_the_limit(serve):
    async with serve() as client:
        await client.post(
            "/domains/birds/versions?activate=true", content=random_bundle("birds", CLASSES, **CONDITIONAL)
        )
        answer = await client.post("/classify/birds?labels=a,b,c,d,e", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (422, "stack_unsupported")
    assert "max_conditional_classes" in answer.json()["detail"]


async def test_conditional_batches_stay_within_max_text_rows(serve, model):
    batches, rank = [], model.rank

    def rank_and_tell(pixels, stacks, top_ks, **options):
        batches.append([stack.domain for stack in stacks])
        return rank(pixels, stacks, top_ks, **options)

    model.rank = rank_and_tell
    async with serve(max_text_rows=6) as client:
        for domain, options in (("birds", CONDITIONAL), ("cats", {})):
            data = random_bundle(domain, CLASSES, **options)
            assert (await client.post(f"/domains/{domain}/versions?activate=true", content=data)).status_code == 201
        batches.clear()
        files = [("images", (f"{n}.png", picture())) for n in range(9)]
        asked = [client.post(f"/classify/{domain}", files=files) for domain in ("birds", "cats")]
        answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert sorted(batches) == [["birds"], *[["birds"] * 2] * 4, ["cats"] * 9]
