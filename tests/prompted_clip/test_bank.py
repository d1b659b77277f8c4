"""The bank: loads, evictions, pinned stacks, references held by batches, threads, failures."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from prompted_clip.bank import PromptBank
from prompted_clip.model import PromptedClip
from prompted_clip.stack import PromptStack
from tests.stacks import random_bundle
from tests.tiny import random_pixels, register_tiny_models, tiny_backbone

CPU = torch.device("cpu")


def stack(domain="demo", seed=0, **options):
    return PromptedClip(tiny_backbone()).load_stack(read_bundle(random_bundle(domain, seed=seed, **options)))


def stacks(count):
    return [stack(f"domain-{seed}", seed) for seed in range(count)]


def resident(bank, stacks):
    return [one for one in stacks if one in bank]


class Counts:
    """The bank's counts, as an observer receives them."""

    def __init__(self, bank):
        self.slots, self.n_loads, self.n_evictions = {}, 0, 0
        bank.observer = self

    def bank_changed(self, *, n_used, n_free, n_kept, n_loads, n_evictions):
        self.slots = {"used": n_used, "free": n_free, "kept": n_kept}
        self.n_loads += n_loads
        self.n_evictions += n_evictions


def test_a_copy_equals_the_stack_to_the_bit_without_the_separate_groups():
    one = stack(image_boost=(2, 3), image_adapt=(1, 1), text_boost=(2, 2))
    (copy,) = PromptBank(CPU).get([one])
    assert torch.equal(copy.image.tokens, one.image.tokens)
    assert torch.equal(copy.image.depths, one.image.depths)
    assert torch.equal(copy.text_features, one.text_features)
    assert (copy.class_names, copy.logit_scale) == (one.class_names, one.logit_scale)
    assert copy.image_boost is copy.image_adapt is copy.text_boost is None


def test_copies_come_in_the_order_asked_for_and_each_stack_is_copied_once():
    bank, (first, second) = PromptBank(CPU), stacks(2)
    counts = Counts(bank)
    copies = bank.get([first, second, first])
    assert [copy.domain for copy in copies] == ["domain-0", "domain-1", "domain-0"]
    assert copies[0] is copies[2] is bank.get([first])[0]
    assert counts.n_loads == 2


def test_the_least_recently_used_stack_is_evicted():
    bank, all_stacks = PromptBank(CPU, n_slots=3), stacks(4)
    first, second, third, fourth = all_stacks
    for one in (first, second, third, first, fourth):
        bank.get([one])
    assert resident(bank, all_stacks) == [first, third, fourth]


def test_a_batch_of_more_stacks_than_slots_gets_all_copies_and_the_slots_keep_the_last():
    bank, all_stacks = PromptBank(CPU, n_slots=2), stacks(5)
    copies = bank.get(all_stacks)
    assert [copy.domain for copy in copies] == [one.domain for one in all_stacks]
    assert resident(bank, all_stacks) == all_stacks[-2:]


def test_a_copy_outlives_its_eviction_while_a_batch_holds_it():
    bank, (first, second) = PromptBank(CPU, n_slots=1), stacks(2)
    (held,) = bank.get([first])
    bank.get([second])
    assert first not in bank
    assert torch.equal(held.image.tokens, first.image.tokens)


def test_a_pinned_stack_stays_until_another_is_pinned_for_its_domain():
    bank, others = PromptBank(CPU, n_slots=2), stacks(3)
    old, new = stack("pinned", seed=7), stack("pinned", seed=8)
    bank.pin(old)
    bank.get([old])
    for one in others:
        bank.get([one])
    assert resident(bank, [old, *others]) == [old, others[2]]
    bank.pin(new)
    for one in (new, *others):
        bank.get([one])
    assert resident(bank, [old, new, *others]) == [new, others[2]]


def test_the_copy_of_a_stack_that_is_referenced_nowhere_else_is_dropped():
    bank, (stays, gone) = PromptBank(CPU), stacks(2)
    counts = Counts(bank)
    bank.get([stays, gone])
    del gone
    gc.collect()
    bank.get([stays])
    assert counts.slots["used"] == 1
    assert counts.n_evictions == 0


def test_the_observer_receives_slots_loads_and_evictions():
    bank, all_stacks = PromptBank(CPU, n_slots=3), stacks(5)
    counts = Counts(bank)
    bank.pin(all_stacks[0])
    bank.get(all_stacks[:2])
    assert counts.slots == {"used": 1, "free": 1, "kept": 1}
    for one in all_stacks:
        bank.get([one])
    assert counts.slots == {"used": 2, "free": 0, "kept": 1}
    assert (counts.n_loads, counts.n_evictions) == (5, 2)


def test_many_threads_that_need_the_same_stacks_copy_each_one_once():
    bank, all_stacks, together = PromptBank(CPU), stacks(8), threading.Barrier(16)
    counts = Counts(bank)

    def get(index):
        together.wait(10)
        wanted = all_stacks if index % 2 else all_stacks[::-1]
        return [copy.domain for copy in bank.get(wanted)] == [one.domain for one in wanted]

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(get, range(16)))
    assert counts.n_loads == 8


def test_a_copy_that_finds_no_memory_leaves_the_bank_usable(monkeypatch):
    bank, (first, second) = PromptBank(CPU), stacks(2)
    bank.get([first])

    def no_memory(*_):
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(PromptStack, "to", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            bank.get([first, second])
    assert resident(bank, [first, second]) == [first]
    assert bank.get([second])[0].domain == "domain-1"


@pytest.mark.gpu
@pytest.mark.parametrize("head", [pytest.param("plain", marks=pytest.mark.slow), "class"])
def test_stacks_are_loaded_and_evicted_on_the_gpu_while_forwards_run(head):
    register_tiny_models()
    model = PromptedClip(load_backbone("tiny", random_seed=0, device="cuda"), bank_slots=4)
    roomy = PromptedClip(model.backbone, bank_slots=64)
    loaded = [model.load_stack(read_bundle(random_bundle(seed=seed, head=head))) for seed in range(16)]
    assert all(one.text_features.is_pinned() for one in loaded)
    pixels = random_pixels(4)
    batches = [[loaded[(start * 3 + row) % 16] for row in range(4)] for start in range(64)]
    with ThreadPoolExecutor(2) as threads:  # as in the engine on a GPU
        found = list(threads.map(lambda rows: model.rank(pixels, rows, [3] * 4), batches))
    for rows, ranked in zip(batches, found, strict=True):
        for mine, own in zip(ranked, roomy.rank(pixels, rows, [3] * 4), strict=True):
            assert mine.class_ids == own.class_ids
            assert mine.probabilities == pytest.approx(own.probabilities, abs=1e-5)
