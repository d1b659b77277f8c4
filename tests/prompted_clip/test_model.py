"""Stacks on a backbone: loading, refusing, mixing, scoring, other labels."""

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.errors import StackMismatchError
from prompted_clip.fused_tower import FusedImageTower
from prompted_clip.model import TYPICAL_PROMPTS, PromptedClip
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.prompts import collate_grids, join_groups
from prompted_clip.stack import Lane
from prompted_clip.text import encode_classes
from prompted_clip.vision import encode_image
from tests.stacks import random_bundle
from tests.tiny import random_pixels, tiny_backbone


@pytest.fixture(scope="module")
def model():
    return PromptedClip(tiny_backbone())


def load(model, **options):
    return model.load_stack(read_bundle(random_bundle(**options)))


def test_a_loaded_stack_carries_the_bundles_tensors_and_names(model):
    data = random_bundle(image_boost=(2, 3), text_boost=(1, 4))
    bundle = read_bundle(data)
    stack = model.load_stack(bundle)
    assert (stack.domain, stack.digest) == ("demo", bundle.digest)
    assert stack.class_names == ("cat", "dog", "bird")
    assert torch.equal(stack.image_boost, torch.from_numpy(bundle.tensors["image.boost"]))
    assert torch.equal(stack.text_features, torch.from_numpy(bundle.tensors["text.features"]))
    assert stack.lane == Lane(3, "static")


def test_a_bundle_for_another_backbone_is_refused_with_both_fingerprints(model):
    other = tiny_backbone(seed=1)
    with pytest.raises(StackMismatchError) as caught:
        load(model, backbone=other)
    assert other.fingerprint in str(caught.value)
    assert model.backbone.fingerprint in str(caught.value)


def test_prompts_deeper_than_the_tower_are_refused(model):
    with pytest.raises(StackMismatchError, match=r"image\.boost is 4 layers of width 32; the tower has 3 layers"):
        load(model, image_boost=(4, 2))


def test_domains_of_one_lane_share_a_batch_and_answer_as_if_alone(model):
    stacks = [
        load(model, domain="cats", image_boost=(2, 5), seed=1),
        load(model, domain="deep", image_boost=(3, 2), image_adapt=(1, 3), class_names=("a", "b"), seed=2),
        load(model, domain="mats", image_boost=(1, 5), seed=3),
    ]
    rows = [stacks[0], stacks[1], stacks[2], stacks[0]]
    pixels = random_pixels(4)
    mixed = model.score(model.encode_images(pixels, rows), rows)
    for index, stack in enumerate(rows):
        alone = model.score(model.encode_images(pixels[index : index + 1], [stack]), [stack])[0]
        torch.testing.assert_close(mixed[index], alone, rtol=0, atol=1e-5)
        assert mixed[index].shape == (len(stack.class_names),)
        assert float(mixed[index].sum()) == pytest.approx(1, abs=1e-5)


def test_scores_are_the_softmax_of_scaled_cosines_in_double_precision(model):
    stack = load(model)
    images = model.encode_images(random_pixels(2), [stack, stack])
    logits = stack.logit_scale * images.unit_BE.double() @ stack.text_features.double().T
    scores = torch.stack(model.score(images, [stack, stack]))
    torch.testing.assert_close(scores.double(), logits.softmax(1), rtol=0, atol=1e-6)


def test_the_plain_stack_is_open_clips_zero_shot_classifier(model):
    stack = model.plain_stack("plain", ["cat", "dog"], ["a photo of a {}."])
    clip, tokenizer = model.backbone.clip, model.backbone.tokenizer
    images = normalize_pixels(random_pixels(3), model.backbone.preprocess)
    with torch.no_grad():
        expected, _ = clip.get_logits(images, tokenizer(["a photo of a cat.", "a photo of a dog."]))
    scores = torch.stack(model.score(model.encode_images(random_pixels(3), [stack] * 3), [stack] * 3))
    torch.testing.assert_close(scores, expected.softmax(1), rtol=0, atol=1e-5)


def test_features_are_to_the_bit_the_towers_output_under_each_rows_prompts(model):
    stacks = [load(model, image_boost=(2, 3), seed=1), load(model, image_boost=(1, 3), seed=2, class_names=("a", "b"))]
    for rows in ([stacks[0], stacks[1], stacks[0]], [stacks[1]] * 3):
        with torch.no_grad():
            images = normalize_pixels(random_pixels(3), model.backbone.preprocess)
            expected = encode_image(model.backbone, images, collate_grids([stack.image for stack in rows]))
        assert torch.equal(model.encode_images(random_pixels(3), rows).unit_BE, expected)


def test_scores_of_one_stack_are_to_the_bit_the_product_with_its_text_features(model):
    stack = load(model)
    images = model.encode_images(random_pixels(3), [stack] * 3)
    expected = (stack.logit_scale * images.unit_BE @ stack.text_features.T).softmax(dim=-1)
    assert torch.equal(torch.stack(model.score(images, [stack] * 3)), expected)


def test_other_labels_are_encoded_with_the_domains_own_text_prompts(model):
    stack = load(model, text_boost=(2, 3), text_adapt=(1, 2))
    opened = model.with_labels(stack, ["sun", "moon"])
    grid = join_groups([stack.text_adapt, stack.text_boost])
    with torch.no_grad():
        expected = encode_classes(model.backbone, ["sun", "moon"], stack.templates, grid)
    assert torch.equal(opened.text_features, expected)
    assert opened.class_names == ("sun", "moon")
    assert (opened.digest, opened.lane) == (stack.digest, stack.lane)


def test_class_specific_contexts_cannot_serve_other_labels(model):
    stack = load(model, text_adapt=(3, 1, 2))
    with pytest.raises(StackMismatchError, match="class-specific"):
        model.with_labels(stack, ["sun"])


def test_the_boost_stack_drops_the_adapting_prompts_of_both_towers(model):
    stack = load(model, image_boost=(2, 3), image_adapt=(1, 2), text_boost=(2, 2), text_adapt=(1, 2))
    boosted = model.boost_stack(stack)
    assert boosted.lane.n_image_tokens == 3
    with torch.no_grad():
        expected = encode_classes(model.backbone, stack.class_texts, stack.templates, join_groups([stack.text_boost]))
    assert torch.equal(boosted.text_features, expected)


def test_a_stack_without_boosting_prompts_has_no_boost_stack(model):
    with pytest.raises(StackMismatchError, match="no boosting prompts"):
        model.boost_stack(load(model, image_boost=None, image_adapt=(1, 2)))


@pytest.mark.parametrize("change", ["with_labels", "boost_stack"])
def test_a_stack_without_a_template_encodes_no_text(model, change):
    stack = load(model, image_adapt=(1, 2), templates=[])
    with pytest.raises(StackMismatchError, match="no template"):
        model.with_labels(stack, ["sun"]) if change == "with_labels" else model.boost_stack(stack)


@pytest.mark.parametrize(("num_streams", "n_threads"), [(1, 4), (2, 2), (8, 1)])
def test_the_microbatch_is_that_of_the_threads_of_one_stream(monkeypatch, num_streams, n_threads):
    backbone = tiny_backbone()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    model = PromptedClip(backbone, image_tower=FusedImageTower(backbone), num_streams=num_streams)
    assert model.max_microbatch == model.image_tower.max_microbatch(TYPICAL_PROMPTS, n_threads)


def test_open_clips_own_tower_has_no_microbatches():
    assert PromptedClip(tiny_backbone()).max_microbatch is None


def test_bfloat16_stays_close_to_float32():
    from prompted_clip.backbone import load_backbone

    half = PromptedClip(load_backbone("tiny", random_seed=0, dtype=torch.bfloat16))
    full = PromptedClip(tiny_backbone())
    assert half.backbone.fingerprint == full.backbone.fingerprint
    features = []
    for one in (half, full):
        stack = load(one)
        features.append(one.encode_images(random_pixels(4), [stack] * 4).unit_BE)
    assert features[0].dtype == torch.float32
    cosine = (features[0] * features[1]).sum(1)
    assert float(cosine.min()) > 0.999
