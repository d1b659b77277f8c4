"""The prompted forward against open_clip itself, and rows against each other."""

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from prompted_clip.errors import TextTooLongError
from prompted_clip.preprocess import normalize_pixels, to_pixels
from prompted_clip.prompts import collate_grids, join_groups
from prompted_clip.text import encode_classes, encode_tokens, tokenize
from prompted_clip.vision import encode_image
from tests.tiny import random_pixels, tiny_backbone


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def grid(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return join_groups([torch.randn(*shape, 32, generator=generator) for shape in shapes])


def test_without_prompts_image_features_equal_open_clip_to_the_bit(backbone):
    images = normalize_pixels(random_pixels(5), backbone.preprocess)
    with torch.no_grad():
        assert torch.equal(encode_image(backbone, images), backbone.clip.encode_image(images, normalize=True))


def test_without_prompts_text_features_at_full_length_equal_open_clip_to_the_bit(backbone):
    texts = ["a photo of a cat.", "striped circle"]
    padded = backbone.tokenizer(texts)
    _, eot = tokenize(backbone, texts)
    with torch.no_grad():
        assert torch.equal(encode_tokens(backbone, padded, eot), backbone.clip.encode_text(padded, normalize=True))


def test_stopping_at_the_longest_text_changes_nothing_but_rounding(backbone):
    texts = ["a photo of a cat.", "striped circle", "a"]
    with torch.no_grad():
        expected = backbone.clip.encode_text(backbone.tokenizer(texts), normalize=True)
        torch.testing.assert_close(encode_classes(backbone, texts, ["{}"]), expected, rtol=0, atol=1e-6)


def test_a_zero_length_group_is_no_group(backbone):
    images = normalize_pixels(random_pixels(2), backbone.preprocess)
    with torch.no_grad():
        plain = encode_image(backbone, images)
        assert torch.equal(encode_image(backbone, images, grid(0, (2, 0))), plain)


def test_rows_of_a_mixed_batch_equal_each_image_alone(backbone):
    grids = [grid(1, (1, 4), (3, 2)), grid(2, (3, 6)), grid(3, (2, 1), (2, 5)), grid(1, (1, 4), (3, 2))]
    images = normalize_pixels(random_pixels(4, seed=1), backbone.preprocess)
    with torch.no_grad():
        mixed = encode_image(backbone, images, collate_grids(grids))
        for row, own in enumerate(grids):
            alone = encode_image(backbone, images[row : row + 1], own)
            torch.testing.assert_close(mixed[row : row + 1], alone, rtol=0, atol=1e-5)


def test_domains_differ_in_a_mixed_batch(backbone):
    images = normalize_pixels(random_pixels(1), backbone.preprocess).repeat(2, 1, 1, 1)
    with torch.no_grad():
        features = encode_image(backbone, images, collate_grids([grid(1, (2, 4)), grid(2, (2, 4))]))
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_rows_with_different_token_counts_are_refused_in_one_batch():
    with pytest.raises(ValueError, match=r"same number of prompt tokens; found \[2, 3\]"):
        collate_grids([grid(1, (1, 2)), grid(1, (1, 3))])


def test_prompted_and_plain_rows_are_refused_in_one_batch():
    with pytest.raises(ValueError, match=r"found \[0, 2\]"):
        collate_grids([grid(1, (1, 2)), None])


def test_a_text_that_does_not_fit_is_named(backbone):
    with pytest.raises(TextTooLongError, match=r"'cat cat .*78 positions|'cat cat"):
        encode_classes(backbone, ["dog", "cat " * 80], ["{}"])


def test_prompts_count_towards_the_text_length(backbone):
    text = "cat " * 70
    encode_classes(backbone, [text], ["{}"])
    with pytest.raises(TextTooLongError, match="10 prompt tokens"):
        encode_classes(backbone, [text], ["{}"], grid(0, (1, 10)))


def test_several_templates_are_averaged_and_unit_norm(backbone):
    with torch.no_grad():
        features = encode_classes(backbone, ["cat", "dog"], ["a {}.", "one {}."])
        parts = [encode_classes(backbone, [f"{word} cat.", f"{word} dog."], ["{}"]) for word in ("a", "one")]
    torch.testing.assert_close(features, torch.nn.functional.normalize(parts[0] + parts[1], dim=-1))


@pytest.mark.parametrize("max_texts", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 3), (5, 2, 3)], ids=["shared prompts", "a prompt per class"])
def test_class_features_do_not_depend_on_how_many_texts_run_at_once(backbone, shape, max_texts):
    names = ["cat", "dog", "a rather long striped class name", "bird", "red tulip"]
    prompts = torch.randn(*shape, backbone.text_width, generator=torch.Generator().manual_seed(3))
    groups = join_groups([prompts, torch.ones(3, 1, backbone.text_width)])
    rows, beats = [], []
    with torch.no_grad():
        whole = encode_classes(backbone, names, ["a {}.", "one {}."], groups)
        count = backbone.clip.ln_final.register_forward_hook(lambda _, __, x: rows.append(len(x)))
        parts = encode_classes(
            backbone,
            names,
            ["a {}.", "one {}."],
            groups,
            max_texts=max_texts,
            on_progress=lambda: beats.append(len(rows)),
        )
        count.remove()
    assert (sum(rows), max(rows)) == (10, max_texts)
    assert beats == list(range(1, len(rows) + 1))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (50, 40), (31, 90)])
def test_pixels_equal_open_clips_own_transform(backbone, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    pixels = torch.from_numpy(to_pixels(image, 32, backbone.preprocess))
    assert torch.equal(normalize_pixels(pixels[None], backbone.preprocess)[0], transform(image))
