"""Initialisation and position of a context."""

import pytest
import torch

from prompted_clip.errors import TextTooLongError
from tests.base_models import tiny_base_model
from tests.tiny import tiny_backbone
from training.adapting.text_context import init_context, place_context


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("position", "order", "n_before"),
    [
        ("end", [0, 4, 5, 6, 1, 2, 3], 3),
        ("middle", [0, 4, 1, 5, 6, 2, 3], 1),
        ("front", [0, 1, 4, 5, 6, 2, 3], 0),
    ],
)
def test_an_odd_context_is_split_around_the_name(position, order, n_before):
    # "cat." is [SOS, cat, ".", EOT]; 4, 5 and 6 are the context.
    texts = place_context(tiny_base_model(), ["cat"], 3, position)

    assert texts.order_KT.tolist() == [order]
    assert texts.eot_K.tolist() == [6]
    assert texts.n_before == n_before


def test_every_class_is_split_at_its_own_name():
    texts = place_context(tiny_base_model(), ["cat", "striped red circle"], 2, "front")

    assert texts.order_KT.tolist() == [[0, 1, 6, 7, 2, 3, 4, 5], [0, 1, 2, 3, 6, 7, 4, 5]]
    assert texts.eot_K.tolist() == [5, 7]


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_name_that_ends_in_a_full_stop_keeps_all_its_tokens(position):
    texts = place_context(tiny_base_model(), ["U.S."], 4, position)
    (order,) = texts.order_KT.tolist()

    assert sorted(order) == list(range(len(order)))
    assert order[-1] == texts.ids_KT.shape[1] - 1


@pytest.mark.parametrize("name", ["what?", "U.S.", "a...", "hey?!", "cat", "St. Bernard (dog)"])
@pytest.mark.parametrize("position", ["middle", "front"])
def test_the_name_has_as_many_tokens_as_on_its_own(position, name):
    base_model, n_tokens = tiny_base_model(), 4
    tokenizer = base_model.backbone.tokenizer
    texts = place_context(base_model, [name], n_tokens, position)
    text = [tokenizer.sot_token_id, *tokenizer.encode(f"{name}."), tokenizer.eot_token_id]
    n_name, context = len(tokenizer.encode(name)), ["ctx"] * n_tokens
    n_before = {"middle": 2, "front": 0}[position]
    # CoOp's forward(): prefix, half of the context, suffix[:name_len], the other half, suffix[name_len:].
    expected = [text[0], *context[:n_before], *text[1 : 1 + n_name], *context[n_before:], *text[1 + n_name :]]
    assert [[*text, *context][index] for index in texts.order_KT[0].tolist()] == expected


def test_a_full_stop_that_merges_with_the_end_of_a_name_stays_in_the_name():
    base_model = tiny_base_model()
    tokenizer = base_model.backbone.tokenizer
    assert len(tokenizer.encode("what?.")) == len(tokenizer.encode("what?")) == 2
    # [SOS, what, "?.", EOT]; 4 and 5 are the context.
    texts = place_context(base_model, ["what?"], 2, "front")
    assert texts.order_KT.tolist() == [[0, 1, 2, 4, 5, 3]]
    assert texts.eot_K.tolist() == [5]


def test_encoding_selected_classes_equals_selecting_from_all():
    texts = place_context(tiny_base_model((2, 3)), ["cat", "striped circle", "dog"], 4, "middle")
    context = torch.randn(4, 32, generator=seeded())
    chosen = torch.tensor([2, 0, 2])

    found = texts.encode(context.expand(3, -1, -1), chosen)

    torch.testing.assert_close(found, texts.encode(context)[chosen], rtol=0, atol=1e-6)


def test_boosting_prompts_count_towards_the_length_of_a_text():
    name = " ".join(["cat"] * 58)  # SOS + 16 + 58 + "." + EOT = 77
    place_context(tiny_base_model(), ["dog", name], 16)

    with pytest.raises(TextTooLongError, match=r"'cat cat .* cat\.' takes 61 tokens and 19 prompt tokens"):
        place_context(tiny_base_model((2, 3)), ["dog", name], 16)


def test_initial_words_set_length_and_values_of_a_context():
    backbone = tiny_backbone()
    words = backbone.clip.token_embedding(torch.tensor(backbone.tokenizer.encode("a photo of a")))

    contexts = init_context(backbone, "a photo of a", 16, seeded(), n_sets=3)

    assert contexts.shape == (3, 4, 32)
    assert all(torch.equal(context, words) for context in contexts)


def test_a_random_context_is_small_and_determined_by_its_seed():
    backbone = tiny_backbone()
    contexts = init_context(backbone, "", 64, seeded(), n_sets=8)

    assert contexts.shape == (8, 64, 32)
    assert contexts.std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(contexts[0], contexts[1])
    assert torch.equal(contexts, init_context(backbone, "", 64, seeded(), n_sets=8))
    assert not torch.equal(contexts, init_context(backbone, "", 64, seeded(2), n_sets=8))
