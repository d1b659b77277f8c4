"""The demo's own domains and pictures: what is served is what open_clip's own modules answer."""

import pytest
import torch
from PIL import Image

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from prompted_clip.fused_tower import FusedImageTower
from prompted_clip.model import PromptedClip
from prompted_clip.preprocess import to_pixels, upright_rgb
from service.demo.files import ASSETS, read_bundles

PROBABILITY_BOUND = 1e-5
"""Of two ways to round float32 numbers, on the demo's logit scale."""


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("demo-student")


@pytest.fixture(scope="module")
def pictures(backbone):
    paths = sorted((ASSETS / "images").rglob("*.*"))
    arrays = []
    for path in paths:
        with Image.open(path) as image:
            arrays.append(torch.from_numpy(to_pixels(upright_rgb(image), backbone.image_size, backbone.preprocess)))
    return torch.stack(arrays)


@pytest.mark.parametrize("bundle", read_bundles(ASSETS / "bundles"), ids=lambda bundle: bundle.domain)
def test_every_demo_domain_answers_the_same_through_both_towers(backbone, pictures, bundle):
    answers = []
    for tower in (None, FusedImageTower(backbone)):
        model = PromptedClip(backbone, image_tower=tower)
        stacks = [model.load_stack(read_bundle(bundle.data))] * len(pictures)
        answers.append(torch.stack(list(model.score(model.encode_images(pictures, stacks), stacks))))
    plain, fused = answers
    assert torch.equal(fused.argmax(dim=1), plain.argmax(dim=1))
    torch.testing.assert_close(fused, plain, rtol=0, atol=PROBABILITY_BOUND)
