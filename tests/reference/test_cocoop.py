"""Loss and gradients of CoCoOp match its equations, computed one image and one text at a time in float64."""

import pytest
import torch

from tests.base_models import feature_batch, random_images, relative_error, slow_twin, tiny_base_model, token_ids
from training.adapting.cocoop import CoCoOp, CoCoOpRecipe

CLASSES = ["cat", "striped circle", "a rather long name"]
LABELS = [2, 0]
TOLERANCE = 1e-9


def slow_loss(base_model, weights):
    """CE with a context of its own for every image; `weights` are the learnable tensors by name."""
    slow, total = slow_twin(base_model), 0
    for image, label in zip(random_images(len(LABELS), torch.float64), LABELS, strict=True):
        feature = slow.image(image, base_model.image_boost)
        hidden = weights["meta_net.linear1.weight"] @ feature + weights["meta_net.linear1.bias"]
        hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
        shift = weights["meta_net.linear2.weight"] @ hidden + weights["meta_net.linear2.bias"]
        context = torch.stack([token + shift for token in weights["context"]])
        scores = []
        for name in CLASSES:
            text = slow.text(token_ids(base_model, f"{name}."), context.unsqueeze(0), base_model.text_boost)
            scores.append((base_model.logit_scale * feature * text).sum())
        scores = torch.stack(scores)
        total = total - (scores[label] - scores.exp().sum().log())
    return total / len(LABELS)


@pytest.mark.parametrize("boost", [None, (2, 3), (3, 2)])
@pytest.mark.parametrize("texts_per_pass", [1024, 4])
def test_loss_and_gradients_match_the_paper(boost, texts_per_pass):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = CoCoOpRecipe(meta_reduction=4, texts_per_pass=texts_per_pass)
    method = CoCoOp(base_model, CLASSES, recipe).double()

    loss = method.loss(feature_batch(base_model, LABELS))
    loss.backward()

    weights = {name: value.detach().clone().requires_grad_() for name, value in method.named_parameters()}
    expected = slow_loss(base_model, weights)
    gradients = torch.autograd.grad(expected, list(weights.values()))
    assert relative_error(loss, expected) < TOLERANCE
    assert len(gradients) == 5
    for (name, parameter), gradient in zip(method.named_parameters(), gradients, strict=True):
        assert gradient.abs().max() > 0, name
        assert relative_error(parameter.grad, gradient) < TOLERANCE, name
