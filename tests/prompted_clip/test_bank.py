"""Who is resident: room, order of leaving, holding, keeping, threads, failures."""

import dataclasses
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prompt_store.bundle import read_bundle
from prompted_clip import PromptedClip, StackMismatchError
from prompted_clip.backbone import load_backbone
from prompted_clip.bank import PromptBank
from prompted_clip.prompts import join_groups
from prompted_clip.slot import room_of
from prompted_clip.slot_storage import CLASSES_PER_SLOT, TOKENS_PER_SLOT
from prompted_clip.stack import PromptStack
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone


def stack(domain="demo", *, depth=2, n_tokens=3, n_classes=4, seed=0):
    """A plain stack with random content."""
    backbone = tiny_backbone()
    random = torch.Generator().manual_seed(seed)
    prompts = torch.randn(depth, n_tokens, backbone.vision_width, generator=random) if depth else None
    names = tuple(f"class {index}" for index in range(n_classes))
    return PromptStack(
        domain=domain,
        version=1,
        digest=None,
        class_names=names,
        class_texts=names,
        templates=(),
        logit_scale=10.0,
        image_boost=prompts,
        image_adapt=None,
        text_boost=None,
        text_adapt=None,
        text_features=torch.randn(n_classes, backbone.embed_dim, generator=random),
        image=join_groups([prompts]),
    )


def bank(n_slots=3, n_kept=0, patience_s=0.0):
    return PromptBank(tiny_backbone(), n_slots=n_slots, n_kept=n_kept, patience_s=patience_s)


def resident(bank, stacks):
    return [one for one in stacks if bank.is_resident(one)]


class Told:
    """The sum of what an observer heard."""

    def __init__(self, bank):
        self.slots, self.n_loads, self.n_evictions = {}, 0, 0
        bank.observer = self

    def bank_changed(self, *, n_used, n_free, n_kept, n_loads, n_evictions):
        self.slots = {"used": n_used, "free": n_free, "kept": n_kept}
        self.n_loads += n_loads
        self.n_evictions += n_evictions


def test_a_held_stack_is_in_the_bank_to_the_bit():
    one, other = stack(seed=1, depth=3), stack(seed=2, depth=1, n_classes=2)
    storage = (full := bank()).storage
    with full.hold([one, other, one]) as held:
        grid = storage.prompts(held.slots)
        for row, own in enumerate((one, other, one)):
            depth = own.image.max_depth
            assert torch.equal(grid.tokens[row, :depth], own.image.tokens)
            assert not grid.tokens[row, depth:].any()
            assert grid.depths[row].tolist() == [depth] * 3
            assert torch.equal(storage.text_features_of(held.slots[row]), own.text_features)
        assert (grid.min_depth, grid.max_depth, held.rows) == (1, 3, [0, 1, 2])


def test_rows_of_one_stack_share_its_prompts():
    one = stack()
    with (full := bank()).hold([one, one]) as held:
        grid = full.storage.prompts(held.slots)
    assert torch.equal(grid.tokens, one.image.tokens)
    assert torch.equal(grid.depths, one.image.depths)


def test_the_stack_that_was_not_used_for_longest_makes_room():
    full, (first, second, third, fourth) = bank(3), (stack(seed=seed) for seed in range(4))
    for one in (first, second, third, first):
        full.prefetch([one])
    full.prefetch([fourth])
    assert resident(full, [first, second, third, fourth]) == [first, third, fourth]


def test_what_is_here_already_does_not_leave_for_the_rest_of_its_own_batch():
    full, (first, second, third) = bank(2), (stack(seed=seed) for seed in range(3))
    told = Told(full)
    full.prefetch([first, second])
    with full.hold([third, first, second]) as held:
        assert held.rows == [1, 2]
    assert (told.n_loads, told.n_evictions) == (2, 0)


def test_a_held_stack_never_leaves():
    full, (held, second, third) = bank(2), (stack(seed=seed) for seed in range(3))
    with full.hold([held]):
        for one in (second, third, second, third):
            full.prefetch([one])
            assert full.is_resident(held)
        with pytest.raises(RuntimeError, match="held by others"), full.hold([second]), full.hold([third]):
            pass
    full.prefetch([second, third])
    assert not full.is_resident(held)


def test_who_finds_all_room_held_by_others_waits_until_they_let_go():
    full, (first, second) = bank(1, patience_s=20.0), (stack(seed=seed) for seed in range(2))
    has_both = []

    def hold_second():
        with full.hold([second]):
            has_both.append((full.is_resident(first), full.is_resident(second)))

    waiting = threading.Thread(target=hold_second)
    with full.hold([first]):
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert not has_both
    waiting.join(20)
    assert has_both == [(False, True)]


def test_a_large_stack_takes_the_room_of_several_small_ones():
    full, small = bank(4), [stack(n_classes=100, seed=seed) for seed in range(3)]
    many_classes = stack(n_classes=4 * CLASSES_PER_SLOT - 100)
    full.prefetch(small)
    full.prefetch([many_classes])
    assert resident(full, [*small, many_classes]) == [small[2], many_classes]
    full.prefetch([stack(depth=24, n_tokens=4 * TOKENS_PER_SLOT // 24, n_classes=1)])
    assert len(full) == 1


@pytest.mark.parametrize("size", [{"n_classes": 2 * CLASSES_PER_SLOT + 1}, {"depth": 17, "n_tokens": 17}])
def test_a_stack_that_can_never_fit_is_refused_with_the_setting_that_helps(size):
    full = bank(2)
    with pytest.raises(StackMismatchError, match="Raise bank_slots"):
        full.refuse_too_large(stack(**size))
    with pytest.raises(StackMismatchError, match="Raise bank_slots"), full.hold([stack(**size)]):
        pass
    full.refuse_too_large(stack(n_classes=2 * CLASSES_PER_SLOT))


def test_loading_a_bundle_that_can_never_fit_is_refused():
    model = PromptedClip(tiny_backbone(), bank_slots=1)
    names = tuple(f"class {index}" for index in range(CLASSES_PER_SLOT + 1))
    with pytest.raises(StackMismatchError, match="129 classes; the bank has room for 144 and 128"):
        model.load_stack(read_bundle(random_bundle(class_names=names)))
    small = model.load_stack(read_bundle(random_bundle()))
    with pytest.raises(StackMismatchError, match="129 classes"):
        model.with_labels(small, names)


def test_a_kept_stack_stays_until_its_domain_has_another():
    full, others = bank(3, n_kept=1), [stack(f"other-{seed}", seed=seed) for seed in range(6)]
    old, new = stack("kept", seed=7), stack("kept", seed=8)
    assert full.keep(old)
    full.prefetch(others)
    assert full.is_resident(old)
    assert full.keep(new)
    for one in others:
        full.prefetch([one])
    assert full.is_resident(new)
    assert not full.is_resident(old)


def test_a_stack_for_which_there_is_no_room_among_the_kept_ones_comes_and_goes():
    full = bank(4, n_kept=2)
    assert full.keep(stack("first", n_classes=2 * CLASSES_PER_SLOT))
    second, others = stack("second"), [stack(f"other-{seed}", seed=seed) for seed in range(4)]
    assert not full.keep(second)
    full.prefetch([second])
    for one in others:
        full.prefetch([one])
    assert not full.is_resident(second)


def test_kept_stacks_leave_room_for_the_largest_that_is_not_refused():
    full = bank(4, n_kept=2)
    assert full.keep(stack("kept", n_classes=2 * CLASSES_PER_SLOT))
    large = stack("large", n_classes=2 * CLASSES_PER_SLOT, seed=1)
    full.refuse_too_large(large)
    full.prefetch([stack("small", seed=2)])
    with full.hold([large]) as held:
        assert held.rows == [0]
    with pytest.raises(StackMismatchError):
        full.refuse_too_large(stack(n_classes=2 * CLASSES_PER_SLOT + 1))


def test_a_stack_that_nobody_has_any_more_gives_its_slot_back():
    full, stays = bank(2), stack(seed=1)
    told = Told(full)
    full.prefetch([stack(seed=2), stays])
    gc.collect()
    full.prefetch([stack(seed=3)])
    assert full.is_resident(stays)
    assert told.n_evictions == 0


def test_the_observer_hears_of_slots_loads_and_evictions():
    full, stacks = bank(3, n_kept=1), [stack(f"domain-{seed}", seed=seed) for seed in range(5)]
    told = Told(full)
    full.keep(stacks[0])
    full.prefetch(stacks[1:2])
    assert told.slots == {"used": 1, "free": 1, "kept": 1}
    for one in stacks:
        full.prefetch([one])
    assert told.slots == {"used": 2, "free": 0, "kept": 1}
    assert (told.n_loads, told.n_evictions) == (5, 2)


def test_many_threads_that_want_the_same_stacks_bring_each_one_once():
    stacks = [stack(seed=seed) for seed in range(8)]
    full = bank(8)
    told, together = Told(full), threading.Barrier(16)

    def want(index):
        together.wait(10)
        with full.hold(stacks if index % 2 else stacks[::-1]) as held:
            return [torch.equal(full.storage.text_features_of(slot), stacks[0].text_features) for slot in held.slots]

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(want, range(16)))
    assert told.n_loads == 8
    assert all(sorted(answer) == [False] * 7 + [True] for answer in answers)


@pytest.mark.parametrize("fails", ["write", "moved"])
def test_a_load_that_fails_leaves_the_bank_as_it_was(monkeypatch, fails):
    full, (first, second) = bank(2), (stack(seed=seed) for seed in range(2))
    broken = PromptedClip(tiny_backbone()).load_stack(read_bundle(random_bundle(head="class", seed=3)))
    full.prefetch([first])
    free = full.storage.free

    def no_memory(*_):
        raise torch.OutOfMemoryError("no room")

    place = "prompted_clip.arena.Arena.write" if fails == "write" else "prompted_clip.slot_storage.moved"
    with monkeypatch.context() as patch:
        patch.setattr(place, no_memory)
        with pytest.raises(torch.OutOfMemoryError), full.hold([first, broken]):
            pass
    assert (full.storage.free, len(full)) == (free, 1)
    with full.hold([first]) as held:
        assert torch.equal(full.storage.text_features_of(held.slots[0]), first.text_features)
    full.prefetch([second])
    full.prefetch([broken])
    assert resident(full, [first, second, broken]) == [second, broken], "nothing is still held"


def test_a_variant_of_a_stack_is_another_stack():
    one = stack()
    other = dataclasses.replace(one, text_features=one.text_features * 2)
    with (full := bank()).hold([one, other]) as held:
        doubled = full.storage.text_features_of(held.slots[0]) * 2
        assert torch.equal(full.storage.text_features_of(held.slots[1]), doubled)


class Slots(RuleBasedStateMachine):
    """Holding, prefetching, keeping and dropping stacks of all sizes in any order."""

    @initialize(n_slots=st.integers(1, 6), share=st.integers(0, 2))
    def open(self, n_slots, share):
        self.bank = bank(n_slots, n_kept=min(share, n_slots - 1))
        self.total = self.bank.storage.free
        self.stacks, self.holds, self.kept = [], [], {}

    @rule(
        domain=st.sampled_from("abcd"),
        depth=st.sampled_from([0, 1, 3, 12, 40]),
        n_classes=st.sampled_from([1, 100, 129, 300]),
        seed=st.integers(0, 99),
    )
    def register(self, domain, depth, n_classes, seed):
        one = stack(domain, depth=depth, n_classes=n_classes, seed=seed)
        try:
            self.bank.refuse_too_large(one)
        except StackMismatchError:
            return
        self.stacks.append(one)

    def some(self, data):
        return data.draw(st.lists(st.sampled_from(self.stacks), min_size=1, max_size=6))

    @precondition(lambda self: self.stacks)
    @rule(data=st.data())
    def hold(self, data):
        wanted = self.some(data)
        holding = self.bank.hold(wanted)
        try:
            held = holding.__enter__()
        except RuntimeError:
            assert self.holds, "with nobody holding anything, at least one always fits"
            return
        assert held.rows
        assert [wanted[row] for row in range(len(wanted)) if row not in held.rows] == [
            one for one in wanted if not self.bank.is_resident(one)
        ]
        self.holds.append((holding, [wanted[row] for row in held.rows], held.slots))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def let_go(self, data):
        holding, _, _ = self.holds.pop(data.draw(st.integers(0, len(self.holds) - 1)))
        holding.__exit__(None, None, None)

    @precondition(lambda self: self.stacks)
    @rule(data=st.data())
    def prefetch(self, data):
        self.bank.prefetch(self.some(data))

    @precondition(lambda self: self.stacks)
    @rule(data=st.data())
    def keep(self, data):
        one = data.draw(st.sampled_from(self.stacks))
        self.kept.pop(one.domain, None)
        if self.bank.keep(one) and self.bank.is_resident(one):
            self.kept[one.domain] = one

    @precondition(lambda self: self.stacks)
    @rule(data=st.data())
    def unregister(self, data):
        """Nobody has it any more, unless it is held or kept."""
        del self.stacks[data.draw(st.integers(0, len(self.stacks) - 1))]

    @invariant()
    def no_row_belongs_to_two_slots_and_none_is_lost(self):
        slots = list(self.bank._slots.values())
        room = self.bank.storage.free
        for slot in slots:
            room = room.plus(slot.room)
        assert room == self.total
        for rows in ([slot.token_rows_DP.ravel() for slot in slots], [slot.class_rows_K for slot in slots]):
            used = [int(row) for own in rows for row in own]
            assert len(used) == len(set(used))
            assert 0 not in used

    @invariant()
    def held_and_kept_stacks_are_resident_and_to_the_bit_what_they_were(self):
        for _, held, slots in self.holds:
            for one, slot in zip(held, slots, strict=True):
                assert self.bank.is_resident(one)
                assert room_of(one) == slot.room
                assert torch.equal(self.bank.storage.text_features_of(slot), one.text_features)
        assert all(self.bank.is_resident(one) for one in self.kept.values())

    @invariant()
    def only_what_somebody_holds_is_pinned(self):
        n_holds = sum(len(set(map(id, slots))) for _, _, slots in self.holds)
        assert sum(slot.n_holders for slot in self.bank._slots.values()) == n_holds


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.gpu
@pytest.mark.parametrize("head", ["plain", "class"])
def test_stacks_come_and_go_on_the_gpu_while_forwards_run(head):
    model = PromptedClip(load_backbone("tiny", random_seed=0, device="cuda"), bank_slots=4)
    roomy = PromptedClip(model.backbone, bank_slots=64)
    stacks = [model.load_stack(read_bundle(random_bundle(seed=seed, head=head))) for seed in range(16)]
    assert all(one.text_features.is_pinned() for one in stacks)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    batches = [[stacks[(start * 3 + row) % 16] for row in range(4)] for start in range(64)]
    with ThreadPoolExecutor(2) as threads:  # as the engine has them on a GPU
        found = list(threads.map(lambda rows: model.rank(pixels, rows, [3] * 4), batches))
    for rows, ranked in zip(batches, found, strict=True):
        for mine, own in zip(ranked, roomy.rank(pixels, rows, [3] * 4), strict=True):
            assert mine.class_ids == own.class_ids
            assert mine.probabilities == pytest.approx(own.probabilities, abs=1e-5)
