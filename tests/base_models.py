"""Tiny base models, their slow float64 twins, and batches of their features."""

import copy
import dataclasses
import functools

import torch

from prompted_clip.internals import architecture_facts
from tests.reference.slow_clip import SlowClip
from tests.tiny import tiny_backbone
from training.adapting.method import Batch
from training.prompted_backbone import PromptedBackbone


@functools.cache
def _backbone_in(dtype):
    tiny = tiny_backbone()
    if dtype == tiny.dtype:
        return tiny
    return dataclasses.replace(tiny, clip=copy.deepcopy(tiny.clip).to(dtype), dtype=dtype)


def tiny_base_model(boost=None, dtype=torch.float32):
    """The tiny backbone; `boost` is (depth, tokens) of random boosting prompts in both towers, or None."""
    backbone = _backbone_in(dtype)
    if boost is None:
        return PromptedBackbone(backbone)
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(*boost, backbone.vision_width, dtype=torch.float64, generator=generator)
    text = torch.randn(*boost, backbone.text_width, dtype=torch.float64, generator=generator)
    return PromptedBackbone(backbone, image.to(dtype), text.to(dtype), boost_digest="sha256:boost")


def random_images(n_rows, dtype=torch.float32):
    """Normalised noise [n_rows, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(8)
    return torch.randn(n_rows, 3, 32, 32, dtype=torch.float64, generator=generator).to(dtype)


@torch.no_grad()
def feature_batch(base_model, labels, reference="boosted"):
    """Features of random images, for methods that train only text prompts."""
    images = random_images(len(labels), base_model.backbone.dtype)
    return Batch(
        labels_B=torch.tensor(labels),
        features_BE=base_model.encode_images(images),
        reference_BE=base_model.reference(reference).encode_images(images),
    )


def slow_twin(base_model):
    """The base model's backbone, one row and one head at a time in float64."""
    facts = architecture_facts(base_model.backbone.clip)
    return SlowClip(
        base_model.backbone.clip.state_dict(),
        vision_heads=facts["vision_heads"],
        text_heads=facts["text_heads"],
        quick_gelu=facts["quick_gelu"],
    )


def token_ids(base_model, text):
    """[SOS, words, EOT] of one text."""
    tokenizer = base_model.backbone.tokenizer
    return [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]


def relative_error(found, expected):
    """The largest deviation over the largest expected value."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())
