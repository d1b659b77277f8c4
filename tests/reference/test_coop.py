"""Loss and gradients of CoOp match its equations, computed one text at a time in float64."""

import pytest
import torch

from tests.base_models import feature_batch, random_images, relative_error, slow_twin, tiny_base_model, token_ids
from training.adapting.coop import CoOp, CoOpRecipe

CLASSES = ["cat", "striped circle", "a rather long name"]
LABELS = [2, 0]
TOLERANCE = 1e-9


def slow_text(slow, ids, before, boost, behind):
    """g [E] of [SOS, before, boost, name, behind, ".", EOT]; `before` and `behind` [N, W] enter at layer 0 only."""
    words = slow.w["token_embedding.weight"][torch.tensor(ids)]
    first_boost = [boost[0]] if boost is not None else []
    x = torch.cat([words[:1], before, *first_boost, words[1:-2], behind, words[-2:]])
    x = x + slow.w["positional_embedding"][: len(x)]
    for layer in range(3):
        if boost is not None and 0 < layer < len(boost):
            start = 1 + len(before)
            x = torch.cat([x[:start], boost[layer], x[start + boost.shape[1] :]])
        x = slow._block(x, f"transformer.resblocks.{layer}", slow.text_heads, causal=True)
    feature = slow._norm(x[-1:], "ln_final")[0] @ slow.w["text_projection"]
    return feature / feature.norm()


def slow_loss(base_model, context, position):
    """CE written out; `context` is [N, W] or [K, N, W]."""
    slow = slow_twin(base_model)
    texts = []
    for index, name in enumerate(CLASSES):
        own = context if context.ndim == 2 else context[index]
        half = {"end": len(own), "middle": len(own) // 2, "front": 0}[position]
        ids = token_ids(base_model, f"{name}.")
        texts.append(slow_text(slow, ids, own[:half], base_model.text_boost, own[half:]))
    total = 0
    for image, label in zip(random_images(len(LABELS), torch.float64), LABELS, strict=True):
        feature = slow.image(image, base_model.image_boost)
        scores = torch.stack([(base_model.logit_scale * feature * text).sum() for text in texts])
        total = total - (scores[label] - scores.exp().sum().log())
    return total / len(LABELS)


@pytest.mark.parametrize("boost", [None, (2, 3), (3, 2)])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize(("position", "n_tokens"), [("end", 4), ("middle", 4), ("middle", 3), ("front", 3)])
def test_loss_and_gradient_match_the_paper(boost, class_specific, position, n_tokens):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = CoOpRecipe(context_tokens=n_tokens, class_specific=class_specific, position=position)
    method = CoOp(base_model, CLASSES, recipe).double()

    loss = method.loss(feature_batch(base_model, LABELS))
    loss.backward()

    context = method.context.detach().clone().requires_grad_()
    expected = slow_loss(base_model, context, position)
    (gradient,) = torch.autograd.grad(expected, [context])
    assert context.shape == ((3, n_tokens, 32) if class_specific else (n_tokens, 32))
    assert relative_error(loss, expected) < TOLERANCE
    assert relative_error(method.context.grad, gradient) < TOLERANCE


def test_the_slow_text_agrees_with_the_slow_clip_where_both_apply():
    base_model = tiny_base_model((2, 3), torch.float64)
    slow, ids = slow_twin(base_model), token_ids(base_model, "cat.")
    context = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    found = slow_text(slow, ids, context, base_model.text_boost, context[:0])

    assert relative_error(found, slow.text(ids, context.unsqueeze(0), base_model.text_boost)) < TOLERANCE
