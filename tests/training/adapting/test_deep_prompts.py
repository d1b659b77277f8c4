"""Deep prompts: seeded initialisation and exported copies."""

import pytest
import torch

from tests.tiny import tiny_backbone
from training.adapting.deep_prompts import deep_image_prompts, deep_text_prompts
from training.adapting.method import detached
from training.errors import RecipeError
from training.initial_prompts import seeded_linear

CPU = torch.device("cpu")


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def test_a_seeded_linear_layer_has_torchs_default_distribution():
    state = torch.random.get_rng_state()
    linear, same = (seeded_linear(256, 128, generator(), CPU) for _ in range(2))

    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(linear.weight, same.weight)
    for parameter in (linear.weight, linear.bias):
        assert parameter.requires_grad
        assert parameter.abs().max() <= 1 / 16
        assert abs(parameter.std() * 16 * 3**0.5 - 1) < 0.15


def test_words_initialise_layer_0_and_deeper_layers_are_random():
    backbone = tiny_backbone()
    prompts, text = deep_text_prompts(backbone, 3, 2, "a photo of a", generator())
    words = backbone.clip.token_embedding(torch.tensor(backbone.tokenizer.encode("a photo")))

    assert text == "of a {}."
    assert torch.equal(prompts[0].detach(), words.detach())
    assert prompts[1:].abs().max() < 0.1
    assert prompts[1:].std() > 0.015


def test_with_fewer_words_than_tokens_the_other_tokens_are_random():
    backbone = tiny_backbone()
    prompts, text = deep_text_prompts(backbone, 2, 4, "a photo", generator())
    words = backbone.clip.token_embedding(torch.tensor(backbone.tokenizer.encode("a photo")))

    assert text == "{}."
    assert torch.equal(prompts[0, :2].detach(), words.detach())
    assert torch.equal(prompts[:, 2:], deep_text_prompts(backbone, 2, 4, "", generator())[0][:, 2:])


def test_words_of_more_tokens_than_there_are_prompts_are_an_error():
    with pytest.raises(RecipeError, match=r"'zyxwv photo' take \d+ tokens, but there are 2 text tokens"):
        deep_text_prompts(tiny_backbone(), 2, 2, "zyxwv photo", generator())


def test_exported_tensors_are_copies():
    prompts = deep_image_prompts(tiny_backbone(), 1, 2, generator())
    left = detached(prompts)
    with torch.no_grad():
        prompts += 1

    assert not left.requires_grad
    assert torch.equal(left + 1, prompts.detach())
