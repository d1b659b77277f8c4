"""OpenAI's client against real server processes, with API keys."""

import base64

import numpy as np
import openai
import pytest

from prompt_store.store import Store
from service.access.key_file import add_key
from tests.service.fakes import colour_bundle, picture
from tests.service.processes import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "web processes"])
def client(request, tmp_path_factory):
    """A client with a key for the live domain `paint`."""
    folder = tmp_path_factory.mktemp("openai")
    store = Store.open(folder / "store")
    store.activate("paint", store.add("paint", colour_bundle()).version)
    key = add_key(folder / "keys.json", ["classify"], ["paint"])
    with serving(store, keys_file=str(folder / "keys.json"), web_workers=request.param) as (_, url):
        yield openai.OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0)


def url_of(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float", "extra_body": {"modality": "image"}}])
def test_images_are_embedded(client, options):
    result = client.embeddings.create(model="paint", input=[url_of(picture("red")), url_of(picture("blue"))], **options)
    embeddings = np.array([one.embedding for one in result.data])
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert embeddings.argmax(axis=1).tolist() == [0, 2]


def test_errors_are_those_of_the_client(client):
    with pytest.raises(openai.UnprocessableEntityError, match="must be a data URL") as invalid:
        client.embeddings.create(model="paint", input="a red square")
    assert invalid.value.code == "request_invalid"
    with pytest.raises(openai.PermissionDeniedError):
        client.embeddings.create(model="ink", input=[url_of(picture())])
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="none").embeddings.create(model="paint", input=[url_of(picture())])
