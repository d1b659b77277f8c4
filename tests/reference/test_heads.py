"""Scores of every kind of head agree with a slow transcription of the equations, in float64.

The package runs on a float64 copy of the tiny backbone; the transcription reads the bundle's tensors by name.
"""

import copy
import dataclasses

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.internals import architecture_facts
from prompted_clip.model import PromptedClip
from prompted_clip.preprocess import normalize_pixels
from tests.reference.slow_clip import SlowClip
from tests.stacks import SHARE, random_bundle
from tests.tiny import random_pixels, tiny_backbone

TOLERANCE = 1e-9
CLASSES = ("cat", "a rather long striped class name", "red tulip")
PROMPTS = [
    {"image_boost": None},
    {"image_boost": (2, 3), "text_boost": (3, 2)},
    {"image_boost": (2, 3), "image_adapt": (3, 2), "text_boost": (1, 4)},
]


class SlowTowers(SlowClip):
    """Also returns v(x), which `image` normalises in its last line."""

    def embedding(self, image, boost, adapt):
        return self.image(image, boost, adapt) * self.length

    def _norm(self, x, name):
        normed = super()._norm(x, name)
        if name == "visual.ln_post":
            self.length = (normed[0] @ self.w["visual.proj"]).norm()
        return normed


@pytest.fixture(scope="module")
def model():
    tiny = tiny_backbone()
    return PromptedClip(dataclasses.replace(tiny, clip=copy.deepcopy(tiny.clip).double(), dtype=torch.float64))


@pytest.fixture(scope="module")
def slow(model):
    facts = architecture_facts(model.backbone.clip)
    return SlowTowers(
        model.backbone.clip.state_dict(),
        vision_heads=facts["vision_heads"],
        text_heads=facts["text_heads"],
        quick_gelu=facts["quick_gelu"],
    )


@pytest.fixture(scope="module")
def images(model):
    return normalize_pixels(random_pixels(2), model.backbone.preprocess).double()


def bundle_of(**options):
    bundle = read_bundle(random_bundle(class_names=CLASSES, **options))
    return bundle, {name: torch.from_numpy(array).double() for name, array in bundle.tensors.items()}


def found(model, bundle):
    stack = model.load_stack(bundle)
    return model.logits(model.encode_images(random_pixels(2), [stack, stack]), stack)


def assert_equal(logits, expected):
    assert logits.dtype == torch.float64
    assert float((logits - expected).abs().max() / expected.abs().max()) < TOLERANCE


def unit(vector):
    return vector / vector.square().sum().sqrt()


def affine(weight, bias, vector):
    """One output after the other."""
    return torch.stack([(row * vector).sum() + offset for row, offset in zip(weight, bias, strict=True)])


@pytest.mark.parametrize("prompts", PROMPTS)
def test_a_class_head_is_mixed_with_the_text_feature_logits(model, slow, images, prompts):
    bundle, w = bundle_of(head="class", **prompts)
    expected = []
    for image in images:
        v = slow.embedding(image, w.get("image.boost"), w.get("image.adapt"))
        z = torch.stack([bundle.manifest.logit_scale * (unit(v) * g).sum() for g in w["text.features"]])
        expected.append((1 - SHARE) * z + SHARE * affine(w["head.weight"], w["head.bias"], v))
    assert_equal(found(model, bundle), torch.stack(expected))


@pytest.mark.parametrize("prompts", PROMPTS)
def test_a_projector_scores_in_the_space_of_its_text_features(model, slow, images, prompts):
    bundle, w = bundle_of(head="projector", labels="own", **prompts)
    expected = []
    for image in images:
        v = slow.embedding(image, w.get("image.boost"), w.get("image.adapt"))
        hidden = affine(w["head.hidden.weight"], w["head.hidden.bias"], v)
        hidden = torch.stack([value if value > 0 else torch.zeros_like(value) for value in hidden])
        f = unit(affine(w["head.weight"], w["head.bias"], hidden))
        expected.append(torch.stack([bundle.manifest.logit_scale * (f * g).sum() for g in w["text.features"]]))
    assert_equal(found(model, bundle), torch.stack(expected))


@pytest.mark.parametrize("template", ["{}.", "{} in the wild, a type of thing."])
@pytest.mark.parametrize("prompts", PROMPTS)
def test_a_conditional_head_encodes_texts_with_each_images_own_context(model, slow, images, prompts, template):
    bundle, w = bundle_of(head="conditional", text_adapt=(1, 2), templates=[template], **prompts)
    tokenizer = model.backbone.tokenizer
    expected = []
    for image in images:
        f = slow.image(image, w.get("image.boost"), w.get("image.adapt"))
        hidden = affine(w["conditional.linear1.weight"], w["conditional.linear1.bias"], f)
        hidden = torch.stack([value if value > 0 else torch.zeros_like(value) for value in hidden])
        shift = affine(w["conditional.linear2.weight"], w["conditional.linear2.bias"], hidden)
        context = torch.stack([token + shift for token in w["text.adapt"][0]])[None]
        scores = []
        for name in CLASSES:
            text = template.replace("{}", name)
            ids = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
            scores.append(bundle.manifest.logit_scale * (f * slow.text(ids, context, w.get("text.boost"))).sum())
        expected.append(torch.stack(scores))
    assert_equal(found(model, bundle), torch.stack(expected))
