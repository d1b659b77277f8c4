import pytest
import torch
from safetensors.torch import load_file

from training.demo.captions import CaptionBook, phrases, tokenise, tokenizer
from training.demo.models import EMBEDDING, create, encode_text, export_weights, grow, keep_rows
from training.demo.render import seeded_generator

CAPTIONS = ["a photo of a striped circle.", "a star."]


def random_pixels():
    return torch.randn(2, 3, 64, 64, generator=seeded_generator(1))


def test_truncated_text_gives_open_clips_features(tiny_arch):
    model = create(tiny_arch).eval()
    with torch.inference_mode():
        ours = encode_text(model, tokenise(CAPTIONS))
        theirs = model.encode_text(tokenizer()(CAPTIONS), normalize=True)
    torch.testing.assert_close(ours, theirs)


def test_a_grown_model_has_the_output_of_the_small_one(tiny_arch):
    small, deep = create(tiny_arch).eval(), create(f"{tiny_arch}-deep").eval()
    deep.load_state_dict(grow(small.state_dict(), deep))
    with torch.inference_mode():
        torch.testing.assert_close(deep.encode_image(random_pixels()), small.encode_image(random_pixels()))
        tokens = tokenizer()(CAPTIONS)
        torch.testing.assert_close(deep.encode_text(tokens), small.encode_text(tokens))


def test_growing_into_a_shallower_model_is_an_error(tiny_arch):
    small, deep = create(tiny_arch), create(f"{tiny_arch}-deep")
    with pytest.raises(ValueError, match="cannot grow 3 vision blocks into 2"):
        grow(deep.state_dict(), small)


def test_exported_weights_are_float16_and_load_through_open_clip(tiny_arch, tmp_path):
    book, model = CaptionBook(), create(tiny_arch).eval()
    keep_rows(model, book.vocabulary_V)
    path = tmp_path / "weights.safetensors"
    assert export_weights(model, book.vocabulary_V, path) == path.stat().st_size
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}

    loaded = create(tiny_arch, path).eval()
    with torch.inference_mode():
        ours = encode_text(model, book.tokens("shape", "a {}."))
        theirs = loaded.encode_text(tokenizer()([f"a {phrase}." for phrase in phrases("shape")]), normalize=True)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-2)


def test_rows_of_untrained_tokens_are_zero_in_the_exported_file(tiny_arch, tmp_path):
    book, model = CaptionBook(), create(tiny_arch)
    keep_rows(model, book.vocabulary_V)
    export_weights(model, book.vocabulary_V, tmp_path / "weights.safetensors")
    table = load_file(tmp_path / "weights.safetensors")[EMBEDDING]
    is_trained = torch.zeros(len(table), dtype=torch.bool)
    is_trained[book.vocabulary_V] = True
    assert table.shape[0] == 49408
    assert (table[~is_trained] == 0).all()
    assert (table[is_trained] != 0).any(1).all()


def test_the_error_for_missing_weights_names_the_command(tiny_arch, tmp_path):
    with pytest.raises(FileNotFoundError, match="make demo-train"):
        create(tiny_arch, tmp_path / "none.safetensors")
