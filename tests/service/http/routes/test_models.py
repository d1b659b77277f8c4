"""Health, metadata and readiness by the Open Inference Protocol."""

import pytest

from service.access.key_file import add_key, read_keys
from service.http.routes import infer_requests
from tests.service.fakes import colour_bundle

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True


async def test_the_server_describes_itself_and_its_extensions(serve):
    async with serve() as client:
        body = (await client.get("/v2")).json()
    assert body["name"] == "caspl-serve"
    assert body["extensions"] == ["binary_tensor_data", "parameters", "schedule_policy"]


async def test_health_is_that_of_the_probes(serve):
    async with serve() as client:
        before = [await client.get(f"/v2/health/{name}") for name in ("live", "ready")]
        await client.drain()
        after = [await client.get(f"/v2/health/{name}") for name in ("live", "ready")]
    assert [(one.status_code, one.json()) for one in before] == [(200, {"live": True}), (200, {"ready": True})]
    assert [(one.status_code, one.json()) for one in after] == [(200, {"live": True}), (503, {"ready": False})]


async def test_a_model_has_the_versions_of_its_domain_and_the_tensors_that_inference_accepts(serve, store):
    store.add("paint", colour_bundle(seed=1))
    async with serve() as client:
        body = (await client.get("/v2/models/paint")).json()
        same = (await client.get("/v2/models/paint/versions/2")).json()
    assert body == same
    assert (body["name"], body["versions"], body["parameters"]) == ("paint", ["1", "2"], {"live_version": "1"})
    assert {one["name"]: one["datatype"] for one in body["inputs"]} == infer_requests.INPUTS
    assert tuple(one["name"] for one in body["outputs"]) == infer_requests.OUTPUTS
    assert {one["name"]: one["shape"] for one in body["inputs"]} == {"images": [-1], "pixels": [-1, -1, -1, 3]}


async def test_a_model_is_ready_if_its_domain_is_live_and_a_version_if_it_is_stored(serve, store):
    store.add("draft", colour_bundle("draft"))
    paths = {
        "/v2/models/paint/ready": 200,
        "/v2/models/paint/versions/1/ready": 200,
        "/v2/models/paint/versions/9/ready": 404,
        "/v2/models/draft/ready": 404,
        "/v2/models/draft/versions/1/ready": 200,
        "/v2/models/nowhere/ready": 404,
        "/v2/models/nowhere": 404,
        "/v2/models/nowhere/versions/1": 404,
    }
    async with serve() as client:
        answers = {path: await client.get(path) for path in paths}
    assert {path: answer.status_code for path, answer in answers.items()} == paths
    for answer in answers.values():
        body = answer.json()
        assert body.get("ready") is True if answer.status_code == 200 else isinstance(body["error"], str)


async def test_errors_of_unknown_paths_and_methods_have_the_form_of_the_protocol(serve):
    async with serve() as client:
        answers = [await client.get("/v2/models/paint/config"), await client.post("/v2/models/paint", json={})]
        other = await client.get("/v3")
    assert [(one.status_code, one.json()["code"]) for one in answers] == [
        (404, "not_found"),
        (405, "method_not_allowed"),
    ]
    for answer in answers:
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.json()) == {"error", "code", "request_id"}
        assert int(answer.headers["content-length"]) == len(answer.content)
    assert other.headers["content-type"] == "application/problem+json"


async def test_metadata_needs_a_key_for_the_domain_and_health_needs_none(serve, tmp_path):
    key = add_key(tmp_path / "keys.json", ["metrics"], ["paint"])
    headers = {"authorization": f"Bearer {key}"}
    async with serve(read_keys(tmp_path / "keys.json")) as client:
        paths = ("/v2/health/live", "/v2/health/ready", "/v2", "/v2/models/paint", "/v2/models/ink")
        without = [(await client.get(path)).status_code for path in paths]
        with_key = [(await client.get(path, headers=headers)).status_code for path in paths]
    assert without == [200, 200, 401, 401, 401]
    assert with_key == [200, 200, 200, 200, 403]
