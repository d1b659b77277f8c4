"""Loss and gradients of DePT match its equations, in float64."""

import pytest
import torch

from tests.base_models import tiny_base_model, token_ids
from tests.labelled import BOOSTS, CLASS_NAMES, perturbed, pixel_batch
from tests.reference.one_step import UnnormalisedClip, assert_same_step, cross_entropy
from training.adapting.dept import DePT, DePTRecipe
from training.adapting.ivlp import IVLP, IVLPRecipe
from training.adapting.maple import MaPLe, MaPLeRecipe


def maple_host(base_model):
    host = MaPLe(base_model, CLASS_NAMES, MaPLeRecipe(depth=2))
    return host, host.image_prompts, "of a {}."


def ivlp_host(base_model):
    host = IVLP(base_model, CLASS_NAMES, IVLPRecipe(image_tokens=2, image_depth=3, text_depth=1))
    return host, lambda: host.image_prompts, "{}."


@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize("build_host", [maple_host, ivlp_host])
def test_a_step_of_dept_matches_its_equations(boost, build_host):
    base_model = tiny_base_model(boost, torch.float64)
    host, image_prompts, text = build_host(base_model)
    method = perturbed(DePT(base_model, CLASS_NAMES, DePTRecipe(), host).double())
    batch, tensors = pixel_batch(base_model), dict(method.named_parameters())

    slow, y = UnnormalisedClip.of(base_model), batch.labels_B
    ids = [token_ids(base_model, text.replace("{}", name)) for name in CLASS_NAMES]
    v = torch.stack([slow.unnormalised_image(x, base_model.image_boost, image_prompts()) for x in batch.images_BCHW])
    t = torch.stack([slow.unnormalised_text(row, host.text_prompts, base_model.text_boost) for row in ids])
    z = slow.w["logit_scale"].exp() * (v / v.norm(dim=1, keepdim=True)) @ (t / t.norm(dim=1, keepdim=True)).T
    film_v = torch.stack([tensors["image_scale"] * row + tensors["image_shift"] for row in v])
    film_t = torch.stack([tensors["text_scale"] * t[label] + tensors["text_shift"] for label in y])
    of_images, of_texts = (film @ tensors["head.weight"].T + tensors["head.bias"] for film in (film_v, film_t))
    head_loss = (cross_entropy(of_texts, y) + cross_entropy(of_images, y)) / 2

    assert_same_step(method, batch, 0.3 * cross_entropy(z, y) + 0.7 * head_loss)
    torch.testing.assert_close(method.logits(batch), 0.3 * z + 0.7 * of_images, rtol=1e-9, atol=0)
