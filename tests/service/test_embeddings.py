"""An image's embedding is the same from the service, from `caspl.Classifier` and, without prompts, from open_clip."""

import io

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import caspl
from prompt_store.bundle import read_bundle, write_bundle
from prompt_store.manifest import GroupsSpec, StackSpec
from prompt_store.store import Store
from service.demo.files import ASSETS, BACKBONE
from service.engine.loading import load_model
from service.settings import Settings

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True
IMAGES = sorted((ASSETS / "images").glob("*/*"))


def without_prompts(data):
    bundle = read_bundle(data)
    stack = StackSpec(head="static", image=GroupsSpec(), text=GroupsSpec())
    manifest = bundle.manifest.model_copy(update={"domain": "plain", "stack": stack})
    return write_bundle(manifest, {"text.features": bundle.tensors["text.features"]})


BUNDLES = {name: (ASSETS / "bundles" / f"{name}.safetensors").read_bytes() for name in ("satellite", "thermal")}
BUNDLES["plain"] = without_prompts(BUNDLES["thermal"])


@pytest.fixture(scope="module")
def model():
    return load_model(Settings(backbone=BACKBONE, device="cpu", dtype="float32"))


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    for domain, data in BUNDLES.items():
        store.activate(domain, store.add(domain, data).version)
    return store


async def test_the_service_the_classifier_and_open_clip_agree(serve, model):
    async with serve() as client:
        served = {}
        for domain in BUNDLES:
            files = [("images", (path.name, path.read_bytes())) for path in IMAGES]
            answer = await client.post(f"/classify/{domain}?return=embedding", files=files)
            served[domain] = np.array([result["embedding"] for result in answer.json()["results"]])
    local = caspl.Classifier("demo-student", bundles=list(BUNDLES.values()), device="cpu")
    for domain, embeddings in served.items():
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
        expected = [result.embedding for result in local.classify(IMAGES, domain, embedding=True)]
        np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    prepare = image_transform_v2(PreprocessCfg(**model.backbone.preprocess), is_train=False)
    pictures = [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in IMAGES]
    with torch.inference_mode():
        expected = model.backbone.clip.encode_image(torch.stack([prepare(one) for one in pictures]), normalize=True)
    np.testing.assert_allclose(served["plain"], expected.numpy(), atol=1e-5)
    assert np.abs(served["plain"] - served["satellite"]).max() > 0.01, "prompts matter"
