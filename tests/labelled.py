"""Labelled image batches, perturbed methods, and scores from exported prompts."""

import torch

from prompted_clip.internals import unit_norm
from prompted_clip.prompts import join_groups
from prompted_clip.text import encode_classes
from tests.base_models import random_images
from training.adapting.method import Batch

CLASS_NAMES = ("cat", "striped dog", "bird")
BOOSTS = (None, (2, 3))


@torch.no_grad()
def pixel_batch(base_model, reference="boosted"):
    """Three random images, one of each class, with the reference model's features."""
    images = random_images(3, base_model.backbone.dtype)
    return Batch(
        labels_B=torch.tensor([2, 0, 1]),
        images_BCHW=images,
        reference_BE=base_model.reference(reference).encode_images(images),
    )


@torch.no_grad()
def perturbed(method):
    """The method with noise on every parameter, so that no parameter has its initial value."""
    generator = torch.Generator().manual_seed(9)
    for parameter in method.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return method


@torch.no_grad()
def exported_logits(base_model, method, class_names, images):
    """Scores computed only from the exported tensors and the method's template."""
    exported, text_boost = method.fold(), base_model.text_boost
    texts = encode_classes(
        base_model.backbone, class_names, [method.template], join_groups([exported.text_adapt, text_boost])
    )
    embeddings = base_model.embed_images(images, exported.image_adapt)
    scores = base_model.logit_scale * unit_norm(embeddings) @ texts.T
    if exported.head is None:
        return scores
    inputs = unit_norm(embeddings) if exported.head.reads_unit else embeddings
    of_head = inputs @ exported.head.weight_KE.T + exported.head.bias_K
    return (1 - exported.head.share) * scores + exported.head.share * of_head
