import pytest
import torch

from training.demo.captions import KINDS, TEMPLATES, CaptionBook, fill, phrases, targets, tokenise, tokenizer
from training.demo.render import draw_series
from training.demo.world import HELD_OUT, SEEN_PAIRS, SHAPES, TEXTURES

END_TOKEN = 49407


@pytest.fixture(scope="module")
def book():
    return CaptionBook()


def test_no_caption_names_a_held_out_pair():
    held = {f"{TEXTURES[t]} {SHAPES[s]}" for t, s in HELD_OUT}
    for kind in KINDS:
        assert not [phrase for phrase in phrases(kind) if any(name in phrase for name in held)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_caption_is_true(kind):
    pictures = draw_series(1, 32, pairs=SEEN_PAIRS)
    for row, target in enumerate(targets(kind, pictures).tolist()):
        words = set(phrases(kind)[target].split()) - {"object"}
        true = {TEXTURES[pictures.textures[row]], SHAPES[pictures.shapes[row]]}
        assert words & set(TEXTURES) <= true
        assert words & set(SHAPES) <= true
        assert len(words) == len(kind.split())


def test_a_held_out_picture_has_no_class_caption():
    pictures = draw_series(1, 4, pairs=sorted(HELD_OUT))
    with pytest.raises(KeyError):
        targets("texture shape", pictures)


def test_orange_takes_the_article_an():
    assert fill("a photo of a {}.", "orange star") == "a photo of an orange star."
    assert fill("a photo of a {}.", "red star") == "a photo of a red star."


def test_truncated_tokens_equal_open_clips_up_to_the_end_token():
    captions = ["a star.", "a photo of a striped circle."]
    cut, padded = tokenise(captions), tokenizer()(captions)
    assert torch.equal(cut, padded[:, : cut.shape[1]])
    assert (padded[:, cut.shape[1] :] == 0).all()
    assert cut[1, -1] == END_TOKEN


def test_renumbered_tokens_pool_at_the_same_position(book):
    tokens = book.tokens("texture shape", TEMPLATES[0])
    original = tokenise([fill(TEMPLATES[0], phrase) for phrase in phrases("texture shape")])
    assert torch.equal(book.vocabulary_V[tokens], original)
    assert torch.equal(tokens.argmax(1), original.argmax(1))
