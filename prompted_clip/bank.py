"""Which prompt stacks are on the device.

A stack is *registered* when its tensors lie in host memory, and *resident* when they are in the bank as well. A stack's
*slot* is a list of rows in shared tensors, so stacks of any depth, length and number of classes use the same memory.
When room is needed, the stack that has gone unused for longest leaves: its host copy is the original, so nothing has to
be written back.

Knows stacks and slots. Does not know the towers, what a domain's live version is, or HTTP.
"""

import contextlib
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from prompted_clip.backbone import Backbone
from prompted_clip.errors import StackMismatchError
from prompted_clip.slot import Room, Slot, room_of
from prompted_clip.slot_storage import SlotStorage, ordinary_room
from prompted_clip.stack import PromptStack

N_SLOTS: Final = 256
PATIENCE_S: Final = 30.0
"""Longest wait for others to let go of their slots; a batch takes far less."""


class BankObserver(Protocol):
    """What a bank reports; must be quick and must not raise."""

    def bank_changed(self, *, n_used: int, n_free: int, n_kept: int, n_loads: int, n_evictions: int) -> None:
        """Slots in use and not kept, free, and kept; stacks that came and that had to leave since the last report."""


@dataclass(frozen=True, eq=False)
class Held:
    """Stacks that stay resident for now.

    Attributes:
        rows: positions of those that found room, in order.
        slots: their slots, one per position.
    """

    rows: list[int]
    slots: list[Slot]


class PromptBank:
    """The resident stacks of one device.

    Any thread may call it. Stacks are told apart by identity, never by a name; one that nobody refers to any more gives
    its slot back by itself.

    Args:
        backbone: whose device it is.
        n_slots: most stacks resident at once; a stack that is larger than usual takes the room of several.
        n_kept: how many of them, or as much room, may be kept.
        patience_s: how long `hold` waits while others hold all the room.

    Attributes:
        storage: the tensors; what a batch reads of its slots.
        observer: told about changes.
    """

    def __init__(
        self, backbone: Backbone, *, n_slots: int = N_SLOTS, n_kept: int = 0, patience_s: float = PATIENCE_S
    ) -> None:
        self.storage = SlotStorage(backbone, n_slots)
        self.observer: BankObserver | None = None
        self._n_slots = n_slots
        self._for_kept = ordinary_room(n_kept)
        self._for_any = ordinary_room(n_slots - n_kept)
        self._slots: OrderedDict[weakref.ref[PromptStack], Slot] = OrderedDict()  # least recently used first
        self._gone: deque[weakref.ref[PromptStack]] = deque()
        self._kept: dict[str, PromptStack] = {}
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._let_go_of = threading.Condition(self._lock)
        self._door = threading.Lock()  # who waits for room stands in it: nobody goes past
        self._n_loads = self._n_evictions = 0

    def __len__(self) -> int:
        """Stacks that are resident."""
        return len(self._slots)

    def is_resident(self, stack: PromptStack) -> bool:
        """Whether a stack is on the device at this moment."""
        return weakref.ref(stack) in self._slots

    def refuse_too_large(self, stack: PromptStack) -> None:
        """Refuse a stack that would not fit even if everything but the kept ones left.

        Raises:
            StackMismatchError: says what it has too much of, and which setting makes room.
        """
        need, most = room_of(stack), self._for_any
        if not most.holds(need):
            msg = (
                f"The stack of domain {stack.domain!r} has {need.tokens} prompt tokens over all layers and "
                f"{need.classes} classes; the bank has room for {most.tokens} and {most.classes}. Raise bank_slots."
            )
            raise StackMismatchError(msg)

    @contextlib.contextmanager
    def hold(self, stacks: Sequence[PromptStack]) -> Iterator[Held]:
        """Make stacks resident and keep them so until the block ends.

        When not all of them fit at once, as many as do are held; hold the others next. When not even one fits because
        of what others hold, wait until they let go. Whoever holds stacks already must not hold more: two who wait for
        each other would wait in vain.

        Args:
            stacks: one per row, repetitions allowed.

        Raises:
            StackMismatchError: not even one fits.
            RuntimeError: others hold all the room, and do not let go of it.
        """
        with self._door:
            slots = self._acquire(stacks, patience_s=self._patience_s)
        try:
            if stacks and not slots:
                self.refuse_too_large(stacks[0])
                msg = "All slots of the bank are held by others; use fewer threads, or raise bank_slots."
                raise RuntimeError(msg)
            self.storage.wait_for_writes()
            rows = [row for row, stack in enumerate(stacks) if stack in slots]
            yield Held(rows, [slots[stacks[row]] for row in rows])
        finally:
            with self._lock:
                self.storage.mark_read(slots.values())
                self._release(slots)

    def prefetch(self, stacks: Sequence[PromptStack]) -> None:
        """Make as many of these stacks resident as there is room for; they may leave again."""
        slots = self._acquire(stacks)
        with self._lock:
            self._release(slots)

    def keep(self, stack: PromptStack) -> bool:
        """Make a stack resident for good, in place of the one kept for the same domain until now.

        Returns:
            Whether there was room among the kept ones; if not, it comes and goes like any other.
        """
        with self._lock:
            self._let_go(stack.domain)
            wanted = room_of(stack)
            for kept in self._kept.values():
                wanted = wanted.plus(room_of(kept))
            if not self._for_kept.holds(wanted):
                return False
            self._kept[stack.domain] = stack
            if slot := self._slots.get(weakref.ref(stack)):
                slot.is_kept = True
        self.prefetch([stack])
        return True

    def _acquire(self, stacks: Sequence[PromptStack], *, patience_s: float = 0.0) -> dict[PromptStack, Slot]:
        """Hold as many of these stacks as fit, at least one if others let go in time."""
        wanted = dict.fromkeys(stacks)
        can_fit = any(self._for_any.holds(room_of(stack)) for stack in wanted)
        until_s = time.monotonic() + patience_s
        with self._lock:
            while not (held := self._hold_what_fits(wanted)) and can_fit:
                if not self._let_go_of.wait(until_s - time.monotonic()):
                    break
        return held

    def _hold_what_fits(self, wanted: Collection[PromptStack]) -> dict[PromptStack, Slot]:
        """Those that are here already come first."""
        held: dict[PromptStack, Slot] = {}
        try:
            self._forget_gone()
            for stack in wanted:
                if slot := self._slots.get(key := weakref.ref(stack)):
                    slot.n_holders += 1
                    held[stack] = slot
                    self._slots.move_to_end(key)
            for stack in wanted:
                if stack not in held and self._make_room(room_of(stack)):
                    slot = held[stack] = self._load(stack)
                    slot.n_holders += 1
        except BaseException:
            self._release(held)
            raise
        finally:
            self._report()
        return held

    def _release(self, slots: Mapping[PromptStack, Slot]) -> None:
        for slot in slots.values():
            slot.n_holders -= 1
        self._let_go_of.notify_all()

    def _make_room(self, need: Room) -> bool:
        """Have the least recently used stacks leave until there is room, or none if that would not be enough."""
        room = self.storage.free
        leaving = []
        for key, slot in self._slots.items():
            if room.holds(need):
                break
            if not slot.n_holders and not slot.is_kept:
                leaving.append(key)
                room = room.plus(slot.room)
        if not room.holds(need):
            return False
        for key in leaving:
            self._drop(key)
        self._n_evictions += len(leaving)
        return True

    def _load(self, stack: PromptStack) -> Slot:
        slot = self.storage.put(stack)
        slot.is_kept = self._kept.get(stack.domain) is stack
        self._slots[weakref.ref(stack, self._gone.append)] = slot
        self._n_loads += 1
        return slot

    def _drop(self, key: weakref.ref[PromptStack]) -> None:
        self.storage.drop(self._slots.pop(key))

    def _forget_gone(self) -> None:
        """Drop the slots of stacks that nobody refers to any more."""
        while self._gone:
            if (key := self._gone.popleft()) in self._slots:  # it may have left before
                self._drop(key)

    def _let_go(self, domain: str) -> None:
        former = self._kept.pop(domain, None)
        if former is not None and (slot := self._slots.get(weakref.ref(former))):
            slot.is_kept = False

    def _report(self) -> None:
        if self.observer is None:
            return
        n_kept = sum(weakref.ref(stack) in self._slots for stack in self._kept.values())
        self.observer.bank_changed(
            n_used=len(self._slots) - n_kept,
            n_free=self._n_slots - len(self._slots),
            n_kept=n_kept,
            n_loads=self._n_loads,
            n_evictions=self._n_evictions,
        )
        self._n_loads = self._n_evictions = 0
