"""Loss and gradients of PromptSRC match its equations, in float64."""

import pytest
import torch

from tests.base_models import tiny_base_model, token_ids
from tests.labelled import CLASS_NAMES, perturbed, pixel_batch
from tests.reference.one_step import UnnormalisedClip, assert_same_step, cross_entropy, slow_features
from training.adapting.promptsrc import REFERENCE_TEMPLATES, PromptSRC, PromptSRCRecipe


def mean_text(reference):
    """g0 [K, E]: over 60 templates the mean of features of their own length, divided by its length."""
    slow, rows = UnnormalisedClip.of(reference), []
    for name in CLASS_NAMES:
        ids = [token_ids(reference, template.replace("{}", name)) for template in REFERENCE_TEMPLATES]
        mean = sum(slow.unnormalised_text(row, None, reference.text_boost) for row in ids) / 60
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@pytest.mark.parametrize(("boost", "kind"), [(None, "boosted"), ((2, 3), "boosted"), ((2, 3), "plain")])
def test_a_step_of_promptsrc_matches_its_equations(boost, kind):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = PromptSRCRecipe(image_tokens=2, image_depth=3, text_depth=1, reference=kind)
    method = perturbed(PromptSRC(base_model, CLASS_NAMES, recipe).double())
    batch = pixel_batch(base_model, kind)

    reference = tiny_base_model(boost if kind == "boosted" else None, torch.float64)
    texts = [f"{name}." for name in CLASS_NAMES]
    f, g, s = slow_features(base_model, batch.images_BCHW, texts, method.image_prompts, method.text_prompts)
    f0, _, _ = slow_features(reference, batch.images_BCHW, texts, None, None)
    g0 = mean_text(reference)
    p, p0 = torch.softmax(s * f @ g.T, dim=1), torch.softmax(s * f0 @ g0.T, dim=1)
    expected = (
        cross_entropy(s * f @ g.T, batch.labels_B)
        + 10 * (f - f0).abs().sum() / f.numel()
        + 25 * (g - g0).abs().sum() / g.numel()
        + (p0 * (p0 / p).log()).sum() / p.numel()
    )

    assert_same_step(method, batch, expected)
