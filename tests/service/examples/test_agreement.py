"""A fit in the service, the fit of `caspl fit` and a slow reference, on the same pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from prompt_store.bundle import read_bundle
from prompt_store.store import Store
from prompted_clip.few_shot import FEW_SHOT_METHODS
from prompted_clip.model import PromptedClip
from prompted_clip.preprocess import to_pixels
from tests.reference.slow_few_shot import slow_fit
from tests.stacks import random_bundle
from tests.tiny import register_tiny_models, tiny_backbone
from tests.training.data.tiny_images import draw_pets
from training.fit_command import fit_app

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

BASE = random_bundle("pets", ("dog", "cat"), image_boost=(2, 3), text_boost=(2, 2))
NAMES = ["dog", "cat", "striped circle"]


@pytest.fixture
def model():
    return PromptedClip(tiny_backbone())


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    store.activate("pets", store.add("pets", BASE).version)
    return store


def centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)


def command(data, folder, method):
    """The bundle that `caspl fit` writes."""
    register_tiny_models()
    (folder / "base.safetensors").write_bytes(BASE)
    arguments = ["--data", data, "--bundle", folder / "base.safetensors", "--out", folder / "new.safetensors"]
    arguments += ["--random-weights", "--device", "cpu", "--json", "--method", method]
    result = CliRunner().invoke(fit_app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), read_bundle((folder / "new.safetensors").read_bytes())


def reference(model, files, method):
    """Calibrated logits of the pictures, by the slow reference."""
    stack = model.load_stack(read_bundle(BASE))
    pixels = [to_pixels(Image.open(path).convert("RGB"), 32, tiny_backbone().preprocess) for path in files]
    images = model.encode_images(torch.from_numpy(np.stack(pixels)), [stack] * len(files))
    features = images.unit_BE.double().numpy()
    new = model.with_labels(stack, NAMES[2:]).text_features
    texts = torch.cat([stack.text_features, new]).double().numpy()
    text_logits = stack.logit_scale * features @ texts.T
    labels = np.array([NAMES.index(path.parent.name.replace("_", " ")) for path in files])
    return slow_fit(method, features, labels, text_logits, features, text_logits)[1]


@pytest.mark.parametrize("method", FEW_SHOT_METHODS)
async def test_all_three_have_the_same_logits(serve, model, store, tmp_path, method):
    (tmp_path / "data").mkdir()
    data = draw_pets(tmp_path / "data", 6)
    files = sorted(data.rglob("*.png"))
    async with serve() as client:
        for start in range(0, len(files), 6):
            parts = [(path.parent.name, (path.name, path.read_bytes())) for path in files[start : start + 6]]
            added = await client.post("/domains/pets/examples", files=parts)
            assert added.status_code == 201, added.text
        fitted = await client.post("/domains/pets/fit", json={"method": method})
        assert fitted.status_code == 201, fitted.text
        found = []
        for path in files:
            answer = (await client.post("/classify/pets", content=path.read_bytes())).json()
            (result,) = answer["results"]
            by_label = {one["label"]: one["probability"] for one in result["predictions"]}
            found.append([np.log(by_label[name]) for name in NAMES])
    report, bundle = command(data, tmp_path, method)
    expected = reference(model, files, method)
    served = read_bundle(store.read("pets", 2))
    assert fitted.json()["report"]["method"] == report["method"] == method
    assert fitted.json()["report"]["confusion"] == report["confusion"]
    assert [one["predicted"] for one in fitted.json()["report"]["suspects"]] == [
        one["predicted"] for one in report["suspects"]
    ]
    for name in bundle.tensors:
        np.testing.assert_allclose(served.tensors[name], bundle.tensors[name], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(centred(np.array(found)), centred(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head": "class"}, "has a class head"),
        ({"labels": "own"}, "other labels cannot be scored"),
    ],
)
async def test_a_version_that_cannot_be_extended_is_an_error_with_the_reason(serve, store, tmp_path, options, reason):
    base = random_bundle("pets", ("dog", "cat"), **options)
    (tmp_path / "data").mkdir()
    (picture, *_) = draw_pets(tmp_path / "data", 1).rglob("*circle/*.png")
    async with serve() as client:
        uploaded = await client.post("/domains/pets/versions?activate=true", content=base)
        assert uploaded.status_code == 201, uploaded.text
        files = [("circle", (picture.name, picture.read_bytes()))]
        assert (await client.post("/domains/pets/examples", files=files)).status_code == 201
        for answer in (await client.get("/domains/pets/fit"), await client.post("/domains/pets/fit", json={})):
            assert (answer.status_code, answer.json()["code"]) == (422, "stack_unsupported")
            assert reason in answer.json()["detail"]
    assert len(store.versions("pets")) == 2
