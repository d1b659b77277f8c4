"""Slots of shared memory: never two images in one, never lost."""

import os

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.errors import OverloadedError
from service.workers.pixel_slots import PixelSlots, slot_memory, slot_view

N_SLOTS, SIDE = 5, 2


def both_views():
    memory = slot_memory(N_SLOTS, SIDE)
    views = [slot_view(memory, N_SLOTS, SIDE, writable=writable) for writable in (True, False)]
    os.close(memory)
    return views


class Traffic(RuleBasedStateMachine):
    """Calls take slots and give them back in any order; the reader looks at what it was told."""

    def __init__(self):
        super().__init__()
        mine, self.theirs = both_views()
        self.slots = PixelSlots(mine)
        self.pending = []
        self.stamp = 0

    @rule(n_images=st.integers(0, N_SLOTS + 1))
    def ask(self, n_images):
        values = [(self.stamp + i) % 251 for i in range(n_images)]
        self.stamp += n_images
        images = [np.full((3, SIDE, SIDE), value, dtype=np.uint8) for value in values]
        if n_images > len(self.slots.free):
            with pytest.raises(OverloadedError):
                self.slots.fill(images)
        else:
            self.pending.append((self.slots.fill(images), values))

    @rule(data=st.data())
    def answer(self, data):
        if self.pending:
            self.slots.free.extend(self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1)))[0])

    @invariant()
    def a_slot_is_not_reused_while_its_answer_is_pending(self):
        taken = [slot for slots, _ in self.pending for slot in slots]
        assert len(set(taken)) == len(taken) == N_SLOTS - len(self.slots.free)
        for slots, values in self.pending:
            assert [int(self.theirs[slot].max()) for slot in slots] == values
            assert [int(self.theirs[slot].min()) for slot in slots] == values


Traffic.TestCase.settings = settings(max_examples=60, deadline=None)
TestTraffic = Traffic.TestCase


def test_the_reader_cannot_write():
    theirs = both_views()[1]
    with pytest.raises(ValueError, match="read-only"):
        theirs[0] = 1
