"""Inference requests of the Open Inference Protocol, as JSON and with binary data."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from service.access.key_file import add_key, read_keys
from service.http.routes.tensors import MAX_JSON_TENSOR_BYTES
from tests.service.fakes import COLOURS, colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True
PATH = "/v2/models/paint/infer"


def text_of(data):
    return base64.b64encode(data).decode()


def saved(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def images(*colours, **changes):
    """An input of files in JSON."""
    data = [text_of(picture(colour)) for colour in colours]
    return {"name": "images", "datatype": "BYTES", "shape": [len(data)], "data": data} | changes


def pixels(*colours, size=(5, 7)):
    """An input of decoded images in JSON."""
    values = np.stack([np.full((*size, 3), COLOURS[colour], np.uint8) for colour in colours])
    return {"name": "pixels", "datatype": "UINT8", "shape": list(values.shape), "data": values.ravel().tolist()}


def binary(tensor, data, **request):
    """Body and headers of a request with one binary input."""
    tensor = {name: value for name, value in tensor.items() if name != "data"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}], **request}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    return {"content": head + data, "headers": headers}


def elements(*files):
    return b"".join(len(data).to_bytes(4, "little") + data for data in files)


def output(body, name):
    (found,) = [tensor for tensor in body["outputs"] if tensor["name"] == name]
    return found


@pytest.fixture
def ask(serve):
    """Post to a running application once."""

    async def post(path=PATH, **options):
        async with serve() as client:
            return await client.post(path, **options)

    return post


async def test_files_in_json_get_the_labels_and_probabilities_of_a_classify_request(serve, store):
    async with serve() as client:
        answer = await client.post(PATH, json={"id": "a", "inputs": [images("green", "red")]})
        same = await client.post("/classify/paint", json={"images": [{"b64": text_of(picture("green"))}]})
    body, expected = answer.json(), same.json()["results"][0]["predictions"]
    assert answer.status_code == 200, body
    assert (body["model_name"], body["model_version"], body["id"]) == ("paint", "1", "a")
    assert body["parameters"]["digest"] == answer.headers["x-bundle-digest"] == store.live("paint").digest
    assert [tensor["name"] for tensor in body["outputs"]] == ["labels", "probabilities", "class_ids"]
    assert {tuple(tensor["shape"]) for tensor in body["outputs"]} == {(2, 3)}
    assert [tensor["datatype"] for tensor in body["outputs"]] == ["BYTES", "FP32", "INT32"]
    assert output(body, "labels")["data"][:3] == [one["label"] for one in expected]
    assert output(body, "labels")["data"][3] == "red"
    assert output(body, "class_ids")["data"][:3] == [one["class_id"] for one in expected]
    assert output(body, "probabilities")["data"][:3] == pytest.approx([one["probability"] for one in expected])
    assert answer.headers["x-bundle-version"] == "1"
    assert "device;dur=" in answer.headers["server-timing"]


async def test_binary_files_get_the_same_answer_as_json(serve):
    files = [picture("blue"), picture("red", kind="JPEG")]
    tensor = {"name": "images", "datatype": "BYTES", "shape": [2]}
    async with serve() as client:
        raw = await client.post(PATH, **binary(tensor, elements(*files)))
        same = await client.post(PATH, json={"inputs": [tensor | {"data": [text_of(data) for data in files]}]})
    assert raw.status_code == 200, raw.text
    assert raw.json()["outputs"] == same.json()["outputs"]


@pytest.mark.parametrize("preprocess", ["exact", "fast"])
async def test_decoded_images_get_the_same_answer_as_the_file_in_both_forms_of_data(serve, preprocess):
    rows = np.random.default_rng(0).integers(0, 256, (1, 40, 30, 3), np.uint8)
    file = saved(Image.fromarray(rows[0]), "PNG")
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(rows.shape)}
    bodies = []
    async with serve(preprocess=preprocess) as client:
        for options in (
            {"json": {"inputs": [images() | {"shape": [1], "data": [text_of(file)]}]}},
            {"json": {"inputs": [tensor | {"data": rows.ravel().tolist()}]}},
            {"json": {"inputs": [tensor | {"data": rows.tolist()}]}},
            binary(tensor, rows.tobytes()),
        ):
            answer = await client.post(PATH, **options)
            assert answer.status_code == 200, answer.text
            bodies.append(answer.json()["outputs"])
    assert bodies == bodies[:1] * 4


async def test_outputs_are_those_requested_each_in_json_or_binary(ask):
    wanted = [
        {"name": "embeddings", "parameters": {"binary_data": True}},
        {"name": "labels", "parameters": {"binary_data": True}},
        {"name": "probabilities"},
    ]
    answer = await ask(json={"inputs": [images("blue", "green")], "outputs": wanted, "parameters": {"top_k": 1}})
    n_json = int(answer.headers["inference-header-content-length"])
    body, raw = json.loads(answer.content[:n_json]), answer.content[n_json:]
    assert answer.headers["content-type"] == "application/octet-stream"
    assert [(one["name"], one["shape"]) for one in body["outputs"]] == [
        ("embeddings", [2, 3]),
        ("labels", [2, 1]),
        ("probabilities", [2, 1]),
    ]
    n_embedding = output(body, "embeddings")["parameters"]["binary_data_size"]
    embeddings = np.frombuffer(raw[:n_embedding], "<f4").reshape(2, 3)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert embeddings.argmax(axis=1).tolist() == [2, 1]
    assert raw[n_embedding:] == elements(b"blue", b"green")
    assert output(body, "labels")["parameters"] == {"binary_data_size": len(elements(b"blue", b"green"))}
    assert len(output(body, "probabilities")["data"]) == 2


async def test_labels_stack_and_version_are_as_in_classify_requests(serve, store):
    added = store.add("paint", colour_bundle("paint", ("white", "red"), seed=1))
    async with serve() as client:
        free = await client.post(
            PATH, json={"inputs": [images("white")], "parameters": {"labels": "red, white", "stack": "boost"}}
        )
        older = await client.post(
            f"/v2/models/paint/versions/{added.version}/infer", json={"inputs": [images("white")]}
        )
    assert output(free.json(), "labels")["data"][0] == "white"
    assert (older.json()["model_version"], output(older.json(), "labels")["data"][0]) == ("2", "white")


async def test_one_invalid_image_fails_the_request_and_its_index_is_in_the_message(ask):
    data = [text_of(picture()), text_of(b"GIF89a" + bytes(40))]
    answer = await ask(json={"inputs": [images() | {"shape": [2], "data": data}]})
    body = answer.json()
    assert (answer.status_code, body["code"]) == (415, "image_format")
    assert body["error"] == "Image 1: The image is not a JPEG, PNG or WebP file. Convert it to one of these."
    assert answer.headers["content-type"] == "application/json"
    assert body["request_id"] == answer.headers["x-request-id"]


async def test_conversions_are_a_parameter_of_the_response(ask):
    file = saved(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG")
    answer = await ask(json={"inputs": [images() | {"shape": [1], "data": [text_of(file)]}]})
    assert answer.json()["parameters"]["notes"] == "0: cmyk"


REJECTED = {
    "no JSON": (b"{", "Expected JSON of the form"),
    "another form": ({"instances": []}, "Expected JSON of the form"),
    "no input": ({"inputs": []}, "one of the inputs images or pixels, found 0"),
    "two inputs": ({"inputs": [images("red"), pixels("red")]}, "found 2"),
    "an unknown input": ({"inputs": [images("red", name="image")]}, "images or pixels"),
    "another datatype": ({"inputs": [images("red", datatype="FP32")]}, "must be BYTES"),
    "no integers in the shape": ({"inputs": [images("red", shape=["1"])]}, "must be a list of integers"),
    "a larger shape": ({"inputs": [images("red", shape=[2])]}, "expected 2 elements, as in the shape; found 1"),
    "a smaller shape": (
        {"inputs": [images("red", "red", shape=[1])]},
        "found more",
    ),
    "no images": ({"inputs": [images(shape=[0])]}, "each at least 1"),
    "channels first": ({"inputs": [pixels("red") | {"shape": [1, 3, 5, 7]}]}, "channels last"),
    "other pixels": ({"inputs": [pixels("red") | {"data": [0, 256] * 52 + [0]}]}, "integers from 0 to 255"),
    "fractions": ({"inputs": [pixels("red") | {"data": [0.5] * 105}]}, "integers from 0 to 255"),
    "ragged pixels": ({"inputs": [pixels("red") | {"data": [[1], [2, 3]]}]}, "flat or nested"),
    "fewer pixels": ({"inputs": [pixels("red") | {"data": [1, 2]}]}, "expected the shape"),
    "no list of pixels": ({"inputs": [pixels("red") | {"data": "AAAA"}]}, "must be a list"),
    "too many numbers": (
        {"inputs": [pixels("red") | {"data": [100] * (MAX_JSON_TENSOR_BYTES // 4)}]},
        "Send it as binary data",
    ),
    "no data": ({"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1]}]}, "either data or"),
    "an unknown output": ({"inputs": [images("red")], "outputs": [{"name": "scores"}]}, "outputs[0]: expected one of"),
    "an output twice": ({"inputs": [images("red")], "outputs": [{"name": "labels"}] * 2}, "outputs[1]"),
    "an unknown parameter": ({"inputs": [images("red")], "parameters": {"topk": 1}}, "Supported: top_k, labels"),
    "a parameter of another type": ({"inputs": [images("red")], "parameters": {"top_k": "1"}}, "parameters.top_k"),
    "shared memory": (
        {"inputs": [images("red", parameters={"shared_memory_region": "a"})]},
        "inputs[0].parameters.shared_memory_region",
    ),
    "too long a timeout": ({"inputs": [images("red")], "parameters": {"timeout": 10**12}}, "parameters.timeout"),
    "an empty label": ({"inputs": [images("red")], "parameters": {"labels": "a,,b"}}, "label"),
    "a repeated key": (b'{"inputs": [], "inputs": [' + json.dumps(images("red")).encode() + b"]}", "more than once"),
    "a key with escapes": (json.dumps({"inputs": [images("red")]}).replace("name", "n\\u0061me").encode(), "escapes"),
    "a repeated parameter": (
        b'{"parameters": {"top_k": 1, "top_k": 2}, "inputs": [' + json.dumps(images("red")).encode() + b"]}",
        "duplicate key",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
async def test_what_the_request_must_be_is_in_the_message(ask, case):
    sent, expected = REJECTED[case]
    content = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    answer = await ask(content=content, headers={"content-type": "application/json"})
    body = answer.json()
    assert (answer.status_code, body["code"]) in {(422, "request_invalid"), (422, "label_invalid")}, body
    assert expected in body["error"]
    assert len(body["error"]) < 500


TWO = {"name": "images", "datatype": "BYTES", "shape": [2]}
FRAME = {"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 2, 3]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (binary(TWO, elements(picture())), "ends before the end of element 1"),
        (binary(TWO, elements(picture(), picture())[:-1]), "ends before the end of element 1"),
        (binary(TWO, elements(picture(), picture()) + b"\0"), "1 bytes follow the 2 elements"),
        (binary(TWO, (2**32 - 1).to_bytes(4, "little")), "ends before the end of element 0"),
        (binary(FRAME, bytes(11)), "has 12 bytes, found 11"),
        (binary(FRAME, bytes(12)) | {"headers": {"content-type": "application/octet-stream"}}, "Expected JSON"),
        (binary(FRAME, bytes(12)) | {"headers": {"inference-header-content-length": "-1"}}, "number of bytes"),
        (binary(FRAME, bytes(12)) | {"headers": {"inference-header-content-length": "9999"}}, "number of bytes"),
        (
            {
                "content": json.dumps({"inputs": [images("red")]}).encode() + b"\0",
                "headers": {"inference-header-content-length": str(len(json.dumps({"inputs": [images("red")]})))},
            },
            "1 bytes follow the JSON",
        ),
    ],
    ids=["one element", "cut", "more", "a huge element", "few pixels", "no length", "negative", "too long", "unused"],
)
async def test_binary_data_that_does_not_fit_the_shape_is_rejected(ask, options, expected):
    answer = await ask(**options)
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert expected in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "tensor", "status", "code"),
    [
        ("/v2/models/nowhere/infer", images("red"), 404, "domain_not_found"),
        ("/v2/models/paint/versions/9/infer", images("red"), 404, "version_not_found"),
        ("/v2/models/paint/versions/latest/infer", images("red"), 422, "request_invalid"),
        (f"{PATH}?top_k=3", images("red"), 422, "request_invalid"),
        (PATH, images(*["red"] * 17), 413, "too_many_images"),
        (PATH, images() | {"shape": [1], "data": ["no base64!"]}, 422, "image_base64"),
        (PATH, pixels("red", size=(1, 21)), 422, "image_aspect"),
    ],
)
async def test_errors_have_the_codes_of_classify_requests(ask, path, tensor, status, code):
    answer = await ask(path, json={"inputs": [tensor]})
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert isinstance(answer.json()["error"], str)


async def test_another_content_type_is_rejected(ask):
    answer = await ask(content=b"a=1", headers={"content-type": "application/x-www-form-urlencoded"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")


async def test_a_body_beyond_the_limit_of_images_is_rejected_as_in_classify_requests(serve):
    async with serve(max_request_bytes=5000) as client:
        answer = await client.post(PATH, content=b" " * 6000, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_a_key_needs_the_scope_classify_and_the_domain(serve, tmp_path):
    key = add_key(tmp_path / "keys.json", ["classify"], ["paint"])
    headers = {"authorization": f"Bearer {key}"}
    async with serve(read_keys(tmp_path / "keys.json")) as client:
        body = {"inputs": [images("red")]}
        answers = [
            await client.post(PATH, json=body),
            await client.post(PATH, json=body, headers=headers),
            await client.post("/v2/models/ink/infer", json=body, headers=headers),
        ]
    assert [answer.status_code for answer in answers] == [401, 200, 403]
    assert [answer.json().get("code") for answer in answers] == ["unauthorized", None, "denied"]
    assert "error" in answers[0].json()


async def test_priority_and_timeout_are_those_of_the_queue(serve, model):
    async def ask(client, domain, parameters):
        body = {"inputs": [images("red")], "parameters": parameters}
        return await client.post(f"/v2/models/{domain}/infer", json=body)

    async with serve(max_batch_rows=1) as client:
        for domain in ("paint", "ink"):
            assert (await ask(client, domain, {})).status_code == 200
        model.gate.clear()
        n_before = model.n_begun
        running = [asyncio.ensure_future(ask(client, "paint", {}))]
        while model.n_begun == n_before:  # noqa: ASYNC110  it runs on a thread
            await asyncio.sleep(0.01)
        late = await ask(client, "paint", {"timeout": 50_000})
        for domain, priority in (("paint", 3), ("ink", 1)):
            running.append(asyncio.ensure_future(ask(client, domain, {"priority": priority})))
            await asyncio.sleep(0.2)
        model.gate.set()
        answers = await asyncio.gather(*running)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert [answer.status_code for answer in answers] == [200] * 3
    assert model.batches[-3:] == [["paint"], ["ink"], ["paint"]]


async def test_images_requests_and_stages_are_counted(serve):
    async with serve() as client:
        await client.post(PATH, json={"inputs": [images("red", "blue")]})
        await client.post(PATH, json={"inputs": [pixels("red", size=(1, 21))]})
        text = (await client.get("/metrics")).text
    assert 'caspl_images_total{domain="paint",result="answered"} 2.0' in text
    assert 'caspl_images_total{domain="paint",result="rejected"} 1.0' in text
    assert 'caspl_http_requests_total{code="200",method="POST",route="/v2/models/{domain}/infer"} 1.0' in text
    assert 'caspl_errors_total{code="image_aspect"} 1.0' in text


@pytest.mark.parametrize("keep_uncertain", [0, 5])
async def test_files_are_kept_if_the_live_version_is_uncertain_and_the_response_is_the_same(serve, keep_uncertain):
    async with serve(keep_uncertain=keep_uncertain) as client:
        body = {"inputs": [images("red", "white")], "parameters": {"top_k": 1}}
        answer = (await client.post(PATH, json=body)).json()
        await client.post("/v2/models/paint/versions/1/infer", json={"inputs": [images("blue")]})
        await client.post(PATH, json={"inputs": [images("green")], "parameters": {"stack": "boost"}})
        if watching := client.app.state.context.uncertain:
            await asyncio.to_thread(watching._thread.submit(lambda: None).result)
        assert len(client.context.examples.page("paint")) == min(keep_uncertain, 2)
    assert [(one["name"], one["shape"]) for one in answer["outputs"]] == [
        ("labels", [2, 1]),
        ("probabilities", [2, 1]),
        ("class_ids", [2, 1]),
    ]
