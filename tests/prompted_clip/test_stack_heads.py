"""Stacks with heads: loading, refusing, mixing, other labels, boosting prompts alone."""

import dataclasses

import numpy as np
import pytest
import torch

from prompt_store.bundle import Bundle, read_bundle
from prompt_store.manifest import Calibration
from prompted_clip.backbone import load_backbone
from prompted_clip.errors import StackMismatchError, TextTooLongError
from prompted_clip.heads import ClassHead, ConditionalHead, ImageFeatures, Projector
from prompted_clip.model import PromptedClip
from prompted_clip.prompts import join_groups
from prompted_clip.stack import Lane
from prompted_clip.text import encode_classes
from prompted_clip.transfers import nbytes
from tests.stacks import HIDDEN, OTHER_WIDTH, SHARE, random_bundle
from tests.tiny import random_pixels, tiny_backbone

CLASS = {"head": "class", "text_boost": (2, 2), "text_adapt": (1, 2)}
PROJECTOR = {"head": "projector", "labels": "own"}
CONDITIONAL = {"head": "conditional", "text_boost": (2, 2), "text_adapt": (1, 3)}
HEADS = pytest.mark.parametrize("options", [CLASS, PROJECTOR, CONDITIONAL], ids=["class", "projector", "conditional"])


@pytest.fixture(scope="module")
def model():
    return PromptedClip(tiny_backbone())


def load(model, **options):
    return model.load_stack(read_bundle(random_bundle(**options)))


def score(model, pixels, rows):
    return model.score(model.encode_images(pixels, rows), rows)


def assert_rows_equal_each_alone(model, rows, atol):
    pixels = random_pixels(len(rows))
    mixed = score(model, pixels, rows)
    for index, stack in enumerate(rows):
        (alone,) = score(model, pixels[index : index + 1], [stack])
        torch.testing.assert_close(mixed[index], alone, rtol=0, atol=atol)
        assert mixed[index].shape == (len(stack.class_names),)
        assert float(mixed[index].sum()) == pytest.approx(1, abs=1e-5)


def test_each_kind_of_head_is_loaded_in_float32(model):
    stacks = [load(model, **options) for options in (CLASS, PROJECTOR, CONDITIONAL)]
    assert [type(stack.head) for stack in stacks] == [ClassHead, Projector, ConditionalHead]
    assert stacks[0].head.share == SHARE
    assert stacks[1].text_features.shape == (3, OTHER_WIDTH)
    assert stacks[1].head.layers.hidden_weight_HE.shape == (HIDDEN, 24)
    assert stacks[2].text_features is None
    assert stacks[2].text_adapt is None
    assert stacks[2].head.context_NW.shape == (3, 32)


def test_only_a_conditional_head_has_a_lane_of_its_own_and_costs_text_forwards(model):
    stacks = [load(model, **options) for options in ({}, CLASS, PROJECTOR, CONDITIONAL)]
    assert [stack.lane for stack in stacks] == [Lane(3, "static")] * 3 + [Lane(3, "conditional")]
    assert [stack.n_text_rows for stack in stacks] == [0, 0, 0, 3]


@HEADS
def test_a_stacks_memory_counts_its_head(model, options):
    data = random_bundle(**options)
    bundle, stack = read_bundle(data), model.load_stack(read_bundle(data))
    head = stack.head
    parts = [head.ids_KT, head.eot_K, head.boost] if isinstance(head, ConditionalHead) else []
    assert stack.nbytes == sum(array.nbytes for array in bundle.tensors.values()) + sum(
        map(nbytes, [stack.image, *parts])
    )


def test_plain_class_head_and_projector_rows_share_a_forward_and_answer_as_if_alone(model):
    plain = load(model, domain="plain", seed=1)
    classed = load(model, domain="classed", class_names=("a", "b"), seed=2, **CLASS)
    projected = load(model, domain="projected", image_boost=(1, 2), image_adapt=(3, 1), seed=3, **PROJECTOR)
    rows = [plain, classed, projected, classed, plain, projected]
    assert len({stack.lane for stack in rows}) == 1
    assert_rows_equal_each_alone(model, rows, atol=1e-5)


def test_conditional_rows_of_two_domains_answer_as_if_alone(model):
    boosted = load(model, domain="boosted", seed=1, **CONDITIONAL)
    plain = load(
        model, domain="plain", class_names=("a", "a rather long class name"), seed=2, head="conditional",
        text_adapt=(1, 1),
    )  # fmt: skip
    assert_rows_equal_each_alone(model, [boosted, plain, boosted, plain], atol=1e-5)


def test_a_condition_makes_text_features_that_differ_from_image_to_image(model):
    stack = load(model, **CONDITIONAL)
    f_BE = model.encode_images(random_pixels(2), [stack] * 2).unit_BE
    shifts_BW = stack.head.shift(f_BE)
    assert float((shifts_BW[0] - shifts_BW[1]).abs().max()) > 1e-3
    still = dataclasses.replace(stack.head.shift, weight_OH=torch.zeros_like(stack.head.shift.weight_OH))
    frozen = dataclasses.replace(stack, head=dataclasses.replace(stack.head, shift=still))
    images = ImageFeatures(f_BE, f_BE)
    assert float((model.logits(images, frozen) - model.logits(images, stack)).abs().max()) > 1e-3


@pytest.mark.parametrize("max_text_rows", [1, 4, 5, 7, 14])
def test_conditional_scores_do_not_depend_on_how_many_texts_run_at_once(model, max_text_rows):
    names = ("cat", "dog", "a rather long striped class name", "bird", "red tulip")
    wide, narrow = model, PromptedClip(tiny_backbone(), max_text_rows=max_text_rows)
    stack = load(wide, class_names=names, **CONDITIONAL)
    images = wide.encode_images(random_pixels(3), [stack] * 3)
    rows = []
    encode = narrow.backbone.clip.ln_final.register_forward_hook(lambda _, __, x: rows.append(len(x)))
    found = torch.stack(narrow.score(images, [stack] * 3))
    encode.remove()
    assert sum(rows) == 15
    assert max(rows) == min(max_text_rows, 15)
    torch.testing.assert_close(found, torch.stack(wide.score(images, [stack] * 3)), rtol=0, atol=1e-6)


def test_a_class_head_is_left_out_for_other_labels(model):
    stack = load(model, **CLASS)
    opened = model.with_labels(stack, ["sun", "moon"])
    with torch.no_grad():
        grid = join_groups([stack.text_adapt, stack.text_boost])
        expected = encode_classes(model.backbone, ["sun", "moon"], stack.templates, grid)
    assert opened.head is None
    assert torch.equal(opened.text_features, expected)


def test_a_conditional_head_goes_on_with_other_labels(model):
    data = {"seed": 4, **CONDITIONAL}
    opened = model.with_labels(load(model, **data), ["sun", "a moon"])
    trained = load(model, class_names=("sun", "a moon"), **data)
    pixels = random_pixels(2)
    assert (opened.class_names, opened.lane) == (("sun", "a moon"), Lane(3, "conditional"))
    found, expected = score(model, pixels, [opened] * 2), score(model, pixels, [trained] * 2)
    assert torch.equal(torch.stack(found), torch.stack(expected))


@pytest.mark.parametrize("options", [PROJECTOR, {"labels": "own"}, CONDITIONAL | {"labels": "own"}])
def test_a_stack_made_for_its_own_labels_refuses_others_with_the_reason(model, options):
    with pytest.raises(StackMismatchError, match="supports only its own 3 classes, because"):
        model.with_labels(load(model, **options), ["sun"])


@HEADS
def test_the_boost_stack_is_static_and_open_vocabulary_for_every_head(model, options):
    stack = load(model, image_adapt=(1, 2), **options)
    boosted = model.boost_stack(stack)
    with torch.no_grad():
        texts = (stack.class_texts, stack.templates, join_groups([stack.text_boost]))
        expected = encode_classes(model.backbone, *texts)
    assert (boosted.head, boosted.image_adapt, boosted.text_adapt, boosted.labels) == (None, None, None, "any")
    assert boosted.lane == Lane(3, "static")
    assert torch.equal(boosted.text_features, expected)
    assert model.with_labels(boosted, ["sun"]).class_names == ("sun",)


def test_a_projector_learned_with_the_boosting_prompts_stays_with_them(model):
    stack = load(model, **PROJECTOR)
    assert model.boost_stack(stack) is stack
    assert model.boost_stack(load(model, image_adapt=(1, 2), **PROJECTOR)).head is None


def test_the_boost_stack_replaces_features_that_the_prompts_alone_do_not_give(model):
    stack = load(model, labels="own")
    boosted = model.boost_stack(stack)
    assert boosted.labels == "any"
    assert not torch.equal(boosted.text_features, stack.text_features)
    plain = load(model)
    assert model.boost_stack(plain) is plain


@pytest.mark.parametrize(
    ("options", "tensor", "shape"),
    [
        ({}, "text.features", (3, 25)),
        (CLASS, "head.weight", (3, 25)),
        (PROJECTOR, "head.hidden.weight", (6, 25)),
        (CONDITIONAL, "conditional.linear1.weight", (6, 25)),
    ],
)
def test_a_head_for_another_joint_space_is_refused_by_the_tensors_name(model, options, tensor, shape):
    bundle = read_bundle(random_bundle(**options))
    wrong = {tensor: np.ones(shape, np.float32)}
    with pytest.raises(StackMismatchError, match=f"{tensor} has 25 columns; the backbone's joint space has 24"):
        model.load_stack(Bundle(bundle.manifest, dict(bundle.tensors) | wrong, bundle.digest))


def test_a_context_of_another_text_width_is_refused(model):
    bundle = read_bundle(random_bundle(head="conditional", text_adapt=(1, 2)))
    wrong = {"text.adapt": np.ones((1, 2, 33), np.float32)}
    with pytest.raises(StackMismatchError, match=r"text\.adapt is 1 layers of width 33"):
        model.load_stack(Bundle(bundle.manifest, dict(bundle.tensors) | wrong, bundle.digest))


def test_too_many_classes_per_image_are_refused_with_the_limit():
    model = PromptedClip(tiny_backbone(), max_conditional_classes=3)
    stack = load(model, **CONDITIONAL)
    with pytest.raises(StackMismatchError, match="4 classes, more than max_conditional_classes=3"):
        load(model, class_names=tuple("abcd"), **CONDITIONAL)
    with pytest.raises(StackMismatchError, match="max_conditional_classes"):
        model.with_labels(stack, list("abcd"))
    assert len(model.boost_stack(stack).class_names) == 3


def test_a_class_that_does_not_fit_behind_context_and_boosting_prompts_is_named_at_load(model):
    with pytest.raises(TextTooLongError, match="5 prompt tokens"):
        load(model, class_names=("cat", "cat " * 30 + "cat"), templates=["{} " + "cat " * 45], **CONDITIONAL)


def test_a_static_stack_without_text_features_is_a_mistake(model):
    stack = dataclasses.replace(load(model), text_features=None)
    with pytest.raises(ValueError, match="no text features"):
        score(model, random_pixels(1), [stack])


@HEADS
def test_heads_in_bfloat16_stay_close_to_float32(options):
    half = PromptedClip(load_backbone("tiny", random_seed=0, dtype=torch.bfloat16))
    full = PromptedClip(tiny_backbone())
    logits = []
    for one in (half, full):
        stack = load(one, **options)
        logits.append(one.logits(one.encode_images(random_pixels(4), [stack] * 4), stack))
    assert logits[0].dtype == torch.float32
    spread = float((logits[1].max() - logits[1].min()).abs())
    assert float((logits[0] - logits[1]).abs().max()) < 0.1 * spread


def calibrated(temperature=2.5, **options):
    return {"calibration": Calibration(temperature=float(temperature), abstain={"0.05": 0.3}), **options}


def test_a_class_head_may_read_unit_features(model):
    stack = load(model, head_input="unit", **CLASS)
    images = model.encode_images(random_pixels(3), [stack] * 3)
    text = stack.logit_scale * images.unit_BE @ stack.text_features.T
    expected = (1 - SHARE) * text + SHARE * (images.unit_BE @ stack.head.weight_KE.T + stack.head.bias_K)
    torch.testing.assert_close(model.logits(images, stack), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(model.logits(images, load(model, **CLASS)), expected, atol=1e-2)


@pytest.mark.parametrize(
    "options", [{}, CLASS, PROJECTOR, CONDITIONAL], ids=["plain", "class", "projector", "conditional"]
)
def test_the_temperature_divides_the_logits_of_every_kind_of_head(model, options):
    plain, cool = load(model, **options), load(model, **calibrated(**options))
    images = model.encode_images(random_pixels(3), [plain] * 3)
    torch.testing.assert_close(model.logits(images, cool), model.logits(images, plain) / 2.5, rtol=1e-6, atol=1e-6)


def test_stacks_of_different_temperatures_share_a_forward_and_answer_as_if_alone(model):
    stacks = [load(model, domain=f"t{t}", **calibrated(t)) for t in (1, 3)]
    classed = load(model, domain="classed", head_input="unit", **calibrated(4.0, **CLASS))
    assert_rows_equal_each_alone(model, [*stacks, classed, load(model), *stacks], atol=1e-5)


def test_other_labels_and_the_boost_stack_are_not_calibrated(model):
    for options in ({}, CLASS | {"head_input": "unit"}):
        stack = load(model, **calibrated(**options))
        plain = load(model, **{key: value for key, value in options.items() if "head" not in key})
        images = model.encode_images(random_pixels(3), [stack] * 3)
        for change in (lambda one: model.with_labels(one, ["sun", "moon"]), model.boost_stack):
            assert change(stack).head is None
            assert not change(stack).abstain
            torch.testing.assert_close(
                model.logits(images, change(stack)), model.logits(images, change(plain)), rtol=0, atol=1e-4
            )


def test_an_abstention_threshold_is_found_by_its_rate(model):
    stack = load(model, calibration=Calibration(temperature=1.0, abstain={"0.01": 0.2, "0.10": 0.4}))
    assert (stack.abstain_below(0.01), stack.abstain_below(0.1)) == (0.2, 0.4)
    with pytest.raises(
        StackMismatchError, match=r"no abstention threshold for the rate 0\.05; use one of 0\.01, 0\.10\."
    ):
        stack.abstain_below(0.05)
    with pytest.raises(StackMismatchError, match="not calibrated"):
        load(model).abstain_below(0.05)
    assert not model.boost_stack(stack).abstain, "even if the temperature is 1"


def test_stacks_have_the_same_image_digest_if_their_image_prompts_are_the_same(model):
    prompts = {"image_boost": (2, 3), "image_adapt": (1, 2)}
    stack = load(model, **prompts)
    assert load(model, domain="other", class_names=("sun", "moon"), **prompts).image_digest == stack.image_digest
    others = [{"image_boost": (2, 3)}, {"image_boost": (2, 3), "image_adapt": (1, 1)}, prompts | {"seed": 1}]
    digests = [load(model, **options).image_digest for options in others]
    assert len({stack.image_digest, *digests}) == 4
    assert model.boost_stack(stack).image_digest == digests[0]
    assert model.with_labels(stack, ["sun"]).image_digest == stack.image_digest
    assert load(model, image_boost=None, text_boost=(1, 2)).image_digest == ""
    assert model.boost_stack(load(model, image_boost=None, text_boost=(1, 2), image_adapt=(1, 2))).image_digest == ""


def test_an_image_digest_does_not_depend_on_the_dtype_of_the_backbone(model):
    narrow = PromptedClip(load_backbone("tiny", random_seed=0, dtype=torch.bfloat16))
    assert load(narrow, image_adapt=(1, 2)).image_digest == load(model, image_adapt=(1, 2)).image_digest


@pytest.mark.parametrize("options", [{}, CLASS, CLASS | {"head_input": "unit"}, PROJECTOR])
def test_a_stack_restricted_to_some_classes_keeps_their_logits(model, options):
    stack = load(model, **options)
    images = model.encode_images(random_pixels(3), [stack] * 3)
    names = stack.class_names[::-2]
    kept = stack.restricted(names)
    rows = [stack.class_names.index(name) for name in names]
    assert kept.class_names == names
    torch.testing.assert_close(model.logits(images, kept), model.logits(images, stack)[:, rows])


def test_a_stack_cannot_be_restricted_to_classes_it_does_not_have(model):
    with pytest.raises(StackMismatchError, match="does not have the classes no such class"):
        load(model).restricted(["no such class"])
    with pytest.raises(StackMismatchError, match="conditional head"):
        load(model, **CONDITIONAL).restricted(["cat"])
