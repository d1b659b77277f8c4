"""Mixed batches through the bank: the same answers whatever is resident, however many domains there are."""

import numpy as np
import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from tests.stacks import random_bundle
from tests.tiny import random_pixels, tiny_backbone

N_DOMAINS = 1000
LANE = [
    {"image_boost": (2, 3)},
    {"image_boost": (1, 3), "class_names": ("a", "b")},
    {"image_boost": (3, 2), "image_adapt": (1, 1), "class_names": tuple("abcdefg")},
    {"image_boost": (3, 3), "head": "class", "text_boost": (2, 2)},
    {"image_boost": (2, 1), "image_adapt": (3, 2), "head": "projector", "labels": "own"},
]
"""Every depth, length, number of classes and head that may share a forward."""


def load(model, domain="demo", seed=0, **options):
    return model.load_stack(read_bundle(random_bundle(domain, seed=seed, **options)))


class Count:
    def __init__(self, model):
        self.n_loads = self.n_evictions = 0
        self.slots = {}
        model.bank.observer = self

    def bank_changed(self, *, n_used, n_free, n_kept, n_loads, n_evictions):
        self.n_loads += n_loads
        self.n_evictions += n_evictions
        self.slots = {"used": n_used, "free": n_free, "kept": n_kept}


def assert_same_answers(found, expected):
    for mine, own in zip(found, expected, strict=True):
        assert mine.class_ids == own.class_ids
        np.testing.assert_allclose(mine.probabilities, own.probabilities, atol=1e-5)


def each_alone(model, pixels, rows, top_ks):
    singles = zip(pixels, rows, top_ks, strict=True)
    return [model.rank(image[None], [stack], [top_k])[0] for image, stack, top_k in singles]


@pytest.mark.parametrize("bank_slots", [1, 2, 3, 64])
def test_a_mixed_batch_answers_each_row_as_if_it_were_alone_however_few_slots_there_are(bank_slots):
    model = PromptedClip(tiny_backbone(), bank_slots=bank_slots)
    stacks = [load(model, f"domain-{seed}", seed, **options) for seed, options in enumerate(LANE)]
    assert len({stack.lane for stack in stacks}) == 1
    rows = [stacks[index] for index in (0, 3, 1, 4, 2, 0, 1, 3, 2, 4, 4)]
    pixels, top_ks = random_pixels(len(rows)), [1, 2, 3, 10, 5, 2, 9, 1, 7, 2, 3]
    found = model.rank(pixels, rows, top_ks)
    assert_same_answers(found, each_alone(model, pixels, rows, top_ks))
    assert [len(one.class_ids) for one in found] == [
        min(top_k, len(stack.class_names)) for top_k, stack in zip(top_ks, rows, strict=True)
    ]


@pytest.mark.parametrize("options", LANE)
def test_classes_are_ranked_by_their_scores(options):
    model = PromptedClip(tiny_backbone())
    own, other = load(model, "own", 1, **options), load(model, "other", 2)
    rows = [own, other, own]
    scores = model.score(model.encode_images(random_pixels(3), rows), rows)
    for one, score in zip(model.rank(random_pixels(3), rows, [2] * 3), scores, strict=True):
        best = score.topk(2)
        assert one.class_ids == best.indices.tolist()
        assert one.probabilities == pytest.approx(best.values.tolist(), abs=1e-6)


def test_features_and_scores_of_a_batch_with_more_stacks_than_slots_keep_its_order():
    paged, roomy = PromptedClip(tiny_backbone(), bank_slots=2), PromptedClip(tiny_backbone())
    stacks = [load(roomy, f"domain-{seed}", seed, **options) for seed, options in enumerate(LANE)]
    rows = [stacks[index] for index in (4, 0, 3, 1, 2, 0, 4)]
    pixels = random_pixels(len(rows))
    images, expected = paged.encode_images(pixels, rows), roomy.encode_images(pixels, rows)
    torch.testing.assert_close(images.unit_BE, expected.unit_BE, rtol=0, atol=1e-5)
    torch.testing.assert_close(images.embeddings_BE, expected.embeddings_BE, rtol=0, atol=1e-4)
    for mine, own in zip(paged.score(images, rows), roomy.score(expected, rows), strict=True):
        torch.testing.assert_close(mine, own, rtol=0, atol=1e-5)


def test_rows_with_and_without_prompts_or_of_different_lengths_share_no_batch():
    model = PromptedClip(tiny_backbone())
    plain, short, long = (load(model, image_boost=shape) for shape in (None, (2, 1), (1, 2)))
    for rows, found in (([short, long], r"\[1, 2\]"), ([plain, short], r"\[0, 1\]")):
        with pytest.raises(ValueError, match=f"same number of prompt tokens; found {found}"):
            model.rank(random_pixels(2), rows, [1, 1])


@pytest.fixture(scope="module")
def thousand():
    """Stacks of as many domains, of different depths and classes, made from a few bundles."""
    model = PromptedClip(tiny_backbone())
    depths = [{"image_boost": (1 + seed % 3, 3), "class_names": tuple("abcdefgh"[: 2 + seed])} for seed in range(6)]
    bundles = [read_bundle(random_bundle(seed=seed, **options)) for seed, options in enumerate(depths)]
    return [model.load_stack(bundles[number % 6]) for number in range(N_DOMAINS)]


def test_a_thousand_domains_are_served_from_64_slots_with_the_same_answers(thousand):
    paged = PromptedClip(tiny_backbone(), bank_slots=64)
    roomy = PromptedClip(tiny_backbone(), bank_slots=N_DOMAINS)
    told, pixels, random = Count(paged), random_pixels(32), np.random.default_rng(0)
    popularity = 1 / np.arange(1, N_DOMAINS + 1)
    for _ in range(40):
        rows = [thousand[index] for index in random.choice(N_DOMAINS, 32, p=popularity / popularity.sum())]
        assert_same_answers(paged.rank(pixels, rows, [3] * 32), roomy.rank(pixels, rows, [3] * 32))
    assert told.slots == {"used": 64, "free": 0, "kept": 0}
    assert told.n_evictions == told.n_loads - 64
    assert 64 < told.n_loads < 40 * 32


def test_a_thousand_domains_are_resident_at_once(thousand):
    roomy, told = (model := PromptedClip(tiny_backbone(), bank_slots=N_DOMAINS)), Count(model)
    pixels = random_pixels(40)
    for start in range(0, N_DOMAINS, 40):
        roomy.rank(pixels, thousand[start : start + 40], [1] * 40)
    assert told.slots == {"used": N_DOMAINS, "free": 0, "kept": 0}
    assert (told.n_loads, told.n_evictions) == (N_DOMAINS, 0)
    rows = thousand[::25]
    assert_same_answers(
        roomy.rank(pixels, rows, [2] * 40), each_alone(PromptedClip(tiny_backbone()), pixels, rows, [2] * 40)
    )
    assert told.n_loads == N_DOMAINS, "nothing had to come again"
