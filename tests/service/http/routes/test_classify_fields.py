"""Requested fields of a classify response: abstention and embeddings."""

import asyncio
import math

import numpy as np
import pytest

from prompt_store.manifest import Calibration
from tests.service.engine.engine_rows import until
from tests.service.fakes import COLOURS, colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

UNCERTAIN = (255, 200, 0)
"""Between red and green."""


def calibrated(**thresholds):
    rates = {rate.replace("_", "0."): threshold for rate, threshold in thresholds.items()}
    return {"calibration": Calibration(temperature=1.0, abstain=rates)}


async def publish(client, data, domain="paint"):
    answer = await client.post(f"/domains/{domain}/versions?activate=true", content=data)
    assert answer.status_code == 201, answer.text


def files(*colours, field="images"):
    return [(field, (f"{n}.png", picture(colour))) for n, colour in enumerate(colours)]


async def test_an_image_abstains_if_its_best_class_is_less_probable_than_the_threshold(serve):
    async with serve() as client:
        plain = (await client.post("/classify/paint?top_k=1", content=picture(UNCERTAIN))).json()["results"][0]
        probability = plain["predictions"][0]["probability"]
        assert 0.5 < probability < 0.95
        assert not plain.keys() & {"abstained", "label", "embedding"}
        thresholds = {"_01": probability, "_05": math.nextafter(probability, 1), "_10": 0.999}
        await publish(client, colour_bundle(**calibrated(**thresholds)))
        found = {}
        for rate in ("0.01", "0.05", "0.1", "0.10", "1e-1"):
            body = (await client.post(f"/classify/paint?abstain={rate}", files=files(UNCERTAIN, "blue"))).json()
            found[rate] = [(one["abstained"], one["label"]) for one in body["results"]]
            assert [len(one["predictions"]) for one in body["results"]] == [3, 3], "predictions stay"
    sure = (False, "blue")
    assert found["0.01"] == [(False, "red"), sure], "at the threshold a class is certain enough"
    assert found["0.05"] == found["0.1"] == found["0.10"] == found["1e-1"] == [(True, None), sure]


async def test_the_label_is_that_of_the_best_class_whatever_top_k_and_threshold_leave(serve):
    async with serve() as client:
        await publish(client, colour_bundle(**calibrated(_05=0.5)))
        answer = await client.post("/classify/paint?abstain=0.05&threshold=0.99&top_k=1", content=picture(UNCERTAIN))
    (result,) = answer.json()["results"]
    assert (result["predictions"], result["label"], result["abstained"]) == ([], "red", False)


async def test_a_failed_image_neither_abstains_nor_has_a_label_or_an_embedding(serve):
    async with serve() as client:
        await publish(client, colour_bundle(**calibrated(_05=0.5)))
        sent = [*files("green"), ("images", ("note.txt", b"hello"))]
        good, bad = (await client.post("/classify/paint?abstain=0.05&return=embedding", files=sent)).json()["results"]
    assert (good["label"], good["abstained"], len(good["embedding"])) == ("green", False, 3)
    assert (bad["label"], bad["abstained"], bad["embedding"]) == (None, False, None)
    assert bad["error"]["code"] == "image_undecodable"


async def test_a_rate_that_the_version_does_not_have_is_rejected_before_the_device_runs(serve, model):
    async with serve() as client:
        await publish(client, colour_bundle(**calibrated(_01=0.5, _05=0.6)))
        n_begun = model.n_begun
        other = await client.post("/classify/paint?abstain=0.02", content=picture())
        by_number = await client.post("/classify/paint?abstain=0.05&version=1", content=picture())
        assert model.n_begun == n_begun
    assert (other.status_code, other.json()["code"]) == (422, "abstain_unsupported")
    assert other.json()["detail"].endswith("for the rate 0.02; use one of 0.01, 0.05.")
    assert (by_number.status_code, by_number.json()["code"]) == (422, "abstain_unsupported")
    assert "not calibrated" in by_number.json()["detail"]


@pytest.mark.parametrize("query", ["labels=red,blue", "stack=boost"])
async def test_abstention_is_for_the_bundle_s_own_classes_with_all_of_its_prompts(serve, query):
    async with serve() as client:
        await publish(client, colour_bundle(**calibrated(_05=0.5)))
        answer = await client.post(f"/classify/paint?abstain=0.05&{query}", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (422, "abstain_unsupported")
    assert "omit labels and stack=boost" in answer.json()["detail"]


@pytest.mark.parametrize("query", ["abstain=0", "abstain=1", "abstain=-1", "abstain=nan", "abstain=x", "return=pixels"])
async def test_values_that_are_no_rate_or_no_field_are_rejected_by_name(serve, query):
    async with serve() as client:
        answer = await client.post(f"/classify/paint?{query}", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert query.split("=")[0] in str(answer.json()["errors"])


async def test_an_embedding_is_the_unit_norm_image_feature_whatever_classes_are_scored(serve):
    colours = ["red", UNCERTAIN, "white"]
    expected = np.array([COLOURS.get(colour, colour) for colour in colours], dtype=float)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    async with serve() as client:
        for query in ("", "&labels=red,green", "&stack=boost", "&version=1", "&top_k=1"):
            answer = await client.post(f"/classify/paint?return=embedding{query}", files=files(*colours))
            found = [result["embedding"] for result in answer.json()["results"]]
            np.testing.assert_allclose(found, expected, atol=1e-5)
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


async def test_images_of_several_domains_abstain_by_their_own_thresholds(serve):
    sent = [*files(UNCERTAIN, field="paint"), *files(UNCERTAIN, field="ink")]
    async with serve() as client:
        await publish(client, colour_bundle(**calibrated(_05=0.95)))
        without = (await client.post("/classify?abstain=0.05&return=embedding", files=sent)).json()["results"]
        await publish(client, colour_bundle("ink", ("blue", "red"), **calibrated(_05=0.5)), "ink")
        both = (await client.post("/classify?abstain=0.05", files=sent)).json()["results"]
    assert [(one["abstained"], one["label"]) for one in both] == [(True, None), (False, "red")]
    assert [one["error"] and one["error"]["code"] for one in without] == [None, "abstain_unsupported"]
    assert [one["embedding"] is None for one in without] == [False, True]


async def test_requests_with_and_without_embeddings_share_a_batch(serve, model):
    paths = ["/classify/paint?return=embedding", "/classify/ink", "/classify/ink?return=embedding"]
    async with serve() as client:
        model.batches.clear()
        model.gate.clear()
        n_begun = model.n_begun
        asked = [asyncio.ensure_future(client.post("/classify/paint", content=picture("blue")))]
        await until(lambda: model.n_begun > n_begun)
        asked += [asyncio.ensure_future(client.post(path, content=picture("blue"))) for path in paths]
        await until(lambda: client.context.batcher.n_queued == len(paths))
        model.gate.set()
        answers = await asyncio.gather(*asked)
    assert [sorted(batch) for batch in model.batches] == [["paint"], ["ink", "ink", "paint"]]
    results = [answer.json()["results"][0] for answer in answers]
    assert ["embedding" in result for result in results] == [False, True, False, True]
    assert {result["predictions"][0]["label"] for result in results} == {"blue"}
