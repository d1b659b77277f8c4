"""NVIDIA's client for the Open Inference Protocol against real server processes, with API keys."""

import base64

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from prompt_store.store import Store
from service.access.key_file import add_key
from tests.service.fakes import COLOURS, colour_bundle, picture
from tests.service.processes import serving

pytestmark = pytest.mark.slow
COLOUR_NAMES = ["blue", "red", "green"]


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "web processes"])
def running(request, tmp_path_factory):
    """A client of a service with the live domain `paint`, and the headers with a key."""
    folder = tmp_path_factory.mktemp("triton")
    store = Store.open(folder / "store")
    store.activate("paint", store.add("paint", colour_bundle()).version)
    store.add("paint", colour_bundle(names=("white", "red"), seed=1))
    key = add_key(folder / "keys.json", ["classify"], ["paint"])
    with serving(store, keys_file=str(folder / "keys.json"), web_workers=request.param) as (_, url):
        client = triton.InferenceServerClient(url.removeprefix("http://"), concurrency=4)
        yield client, {"Authorization": f"Bearer {key}"}
        client.close()


@pytest.fixture
def service(running):
    client, headers = running
    return client, dict(headers)  # the client adds the length of one request's JSON to it


def files_input(*colours, is_binary=True):
    files = np.array([picture(colour) for colour in colours], dtype=object)
    if not is_binary:
        files = np.array([base64.b64encode(file) for file in files], dtype=object)
    tensor = triton.InferInput("images", [len(files)], "BYTES")
    tensor.set_data_from_numpy(files, binary_data=is_binary)
    return tensor


def pixels_input(*colours, is_binary=True):
    values = np.stack([np.full((30, 40, 3), COLOURS[colour], np.uint8) for colour in colours])
    tensor = triton.InferInput("pixels", list(values.shape), "UINT8")
    tensor.set_data_from_numpy(values, binary_data=is_binary)
    return tensor


def test_health_readiness_and_metadata(service):
    client, headers = service
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("paint", headers=headers)
    assert client.is_model_ready("paint", "2", headers=headers)
    assert not client.is_model_ready("paint", "9", headers=headers)
    assert "binary_tensor_data" in client.get_server_metadata(headers=headers)["extensions"]
    assert client.get_model_metadata("paint", headers=headers)["versions"] == ["1", "2"]


@pytest.mark.parametrize("make_input", [files_input, pixels_input])
@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "json"])
def test_images_are_classified(service, make_input, is_binary):
    client, headers = service
    result = client.infer("paint", [make_input(*COLOUR_NAMES, is_binary=is_binary)], headers=headers, request_id="7")
    assert result.as_numpy("labels")[:, 0].tolist() == [name.encode() for name in COLOUR_NAMES]
    probabilities = result.as_numpy("probabilities")
    assert (probabilities.shape, probabilities.dtype) == ((3, 3), np.float32)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1, 1])
    assert result.as_numpy("class_ids").dtype == np.int32
    assert (result.get_response()["id"], result.get_response()["model_version"]) == ("7", "1")


def test_outputs_are_chosen_by_name_and_form(service):
    client, headers = service
    outputs = [
        triton.InferRequestedOutput("embeddings", binary_data=True),
        triton.InferRequestedOutput("labels", binary_data=False),
    ]
    parameters = {"top_k": 1, "labels": "white,blue"}
    result = client.infer(
        "paint",
        [files_input("white")],
        outputs=outputs,
        headers=headers,
        parameters=parameters,
        priority=1,
        timeout=10**6,
    )
    assert np.linalg.norm(result.as_numpy("embeddings"), axis=1) == pytest.approx([1], abs=1e-5)
    assert result.get_output("labels")["data"] == ["white"]
    assert result.as_numpy("class_ids") is None


def test_a_version_is_a_model_version(service):
    client, headers = service
    result = client.infer("paint", [files_input("white")], model_version="2", headers=headers)
    assert (result.as_numpy("labels")[0, 0], result.get_response()["model_version"]) == (b"white", "2")


def test_many_concurrent_requests_get_their_own_answers(service):
    client, headers = service
    colours = COLOUR_NAMES * 20
    pending = [client.async_infer("paint", [files_input(colour)], headers=dict(headers)) for colour in colours]
    assert [one.get_result().as_numpy("labels")[0, 0].decode() for one in pending] == colours


@pytest.mark.parametrize(
    ("model", "parameters", "headers", "status", "message"),
    [
        ("nowhere", None, {}, "403", "not for this domain"),
        ("paint", {"topk": 1}, {}, "422", "Supported: top_k"),
        ("paint", None, {"Authorization": ""}, "401", "API key"),
    ],
)
def test_errors_are_those_of_the_protocol(service, model, parameters, headers, status, message):
    client, key = service
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [files_input("red")], headers=key | headers, parameters=parameters)
    assert (caught.value.status(), message in caught.value.message()) == (status, True), caught.value.message()


def test_one_invalid_image_fails_the_request(service):
    client, headers = service
    tensor = triton.InferInput("images", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([picture(), b"%PDF-1.7 and so on"], dtype=object))
    with pytest.raises(InferenceServerException, match="Image 1: The image is not a JPEG"):
        client.infer("paint", [tensor], headers=headers)
