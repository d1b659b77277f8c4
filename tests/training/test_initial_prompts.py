"""Initial text prompts from words: the tower computes what it computes for the words themselves."""

import pytest
import torch

from prompted_clip.preprocess import normalize_pixels
from prompted_clip.prompts import join_groups
from prompted_clip.text import encode_classes, encode_tokens, tokenize
from tests.tiny import tiny_backbone
from training.caspl_student import CasplStudent
from training.errors import RecipeError
from training.initial_prompts import prefix_states, word_states
from training.recipe import BoostRecipe
from training.teacher import Teacher

NAMES = ["cat", "striped circle", "a very long name"]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("words", ["a", "a photo of a"])
def test_word_states_give_the_text_features_of_the_words_at_any_depth(words, depth):
    backbone = tiny_backbone()
    states = word_states(backbone, words, depth)
    assert states.shape == (depth, len(backbone.tokenizer.encode(words)), backbone.text_width)
    found = encode_classes(backbone, NAMES, ["{}."], join_groups([states]))
    expected = encode_classes(backbone, NAMES, [f"{words} {{}}."])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_states_of_a_prefix_compute_the_same_as_the_prefix_and_have_the_same_gradient(depth):
    backbone = tiny_backbone()
    prefix = torch.randn(3, backbone.text_width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    names = [f"{name}." for name in NAMES]
    tokens = tokenize(backbone, names, n_prompts=3)
    shallow = encode_tokens(backbone, *tokens, join_groups([prefix.unsqueeze(0)]))
    deep = encode_tokens(backbone, *tokens, join_groups([prefix_states(backbone, prefix, depth)]))

    weights = torch.randn(shallow.shape, generator=torch.Generator().manual_seed(1))
    expected, found = (torch.autograd.grad((one * weights).sum(), prefix)[0] for one in (shallow, deep))

    torch.testing.assert_close(deep, shallow, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_no_words_give_no_prompts():
    assert word_states(tiny_backbone(), "", 2).shape[1] == 0


def test_without_image_prompts_the_student_starts_as_the_plain_model():
    recipe = BoostRecipe(image_tokens=0, text_tokens=4, text_depth=9, text_init="a photo of a")
    student = CasplStudent(tiny_backbone(), NAMES, recipe)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = Teacher(tiny_backbone(), NAMES, "a photo of a {}.")
    with torch.no_grad():
        found = student.logits(normalize_pixels(pixels, tiny_backbone().preprocess))
    torch.testing.assert_close(found, plain.logits(pixels), rtol=0, atol=1e-3)


def test_the_first_text_prompts_start_as_the_words_and_the_rest_at_random():
    words = word_states(tiny_backbone(), "a photo of a", 3)
    text = CasplStudent(tiny_backbone(), NAMES, BoostRecipe(text_tokens=8, text_depth=3)).text
    assert torch.equal(text[:, :4], words)
    assert 0.01 < float(text[:, 4:].detach().std()) < 0.03


def test_words_of_more_tokens_than_there_are_prompts_are_an_error():
    with pytest.raises(RecipeError, match="'a photo of a' take 4 tokens, but there are 2 text tokens"):
        CasplStudent(tiny_backbone(), NAMES, BoostRecipe(text_tokens=2))
    assert CasplStudent(tiny_backbone(), NAMES, BoostRecipe(text_tokens=0)).text.shape[1] == 0
