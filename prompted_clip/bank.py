"""The bank: an LRU cache of prompt stacks in device memory.

The first batch that needs a stack copies it to the device; the least recently used copy is dropped when more than
`n_slots` are there. A batch holds references to its copies, so eviction never frees memory that a forward still reads.
"""

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final, Protocol

import torch

from prompted_clip.stack import PromptStack

N_SLOTS: Final = 256

_Key = weakref.ref[PromptStack]


class BankObserver(Protocol):
    """Receives the bank's counts for metrics; must be quick and must not raise."""

    def bank_changed(self, *, n_used: int, n_free: int, n_kept: int, n_loads: int, n_evictions: int) -> None:
        """Unpinned copies, free slots and pinned copies now; loads and evictions since the last call."""


class PromptBank:
    """Device copies of prompt stacks; thread-safe.

    Keys are stacks by identity. The bank does not keep an unpinned stack alive: its copy is dropped after the last
    other reference to it is gone.

    Args:
        device: where the copies are.
        n_slots: maximum number of copies; a batch of more stacks exceeds it until its `get` returns.
    """

    def __init__(self, device: torch.device, *, n_slots: int = N_SLOTS) -> None:
        self.observer: BankObserver | None = None  # is called after every change
        self._device = device
        self._n_slots = n_slots
        self._copies: OrderedDict[_Key, PromptStack] = OrderedDict()  # least recently used first
        self._pinned: dict[str, PromptStack] = {}  # by domain
        self._collected: deque[_Key] = deque()  # appended by the garbage collector, on any thread
        self._lock = threading.Lock()

    def __contains__(self, stack: PromptStack) -> bool:
        """Whether a stack has a copy on the device."""
        return weakref.ref(stack) in self._copies

    @torch.inference_mode()
    def get(self, stacks: Sequence[PromptStack]) -> list[PromptStack]:
        """The device copies of these stacks, in order; missing ones are copied from the host.

        Raises:
            torch.OutOfMemoryError: no device memory for a copy.
        """
        copies: dict[PromptStack, PromptStack] = {}
        n_loads = 0
        with self._lock:
            for stack in stacks:
                if stack in copies:
                    continue
                copy = self._copies.get(key := weakref.ref(stack))
                if copy is None:
                    copy, key = stack.to(self._device), weakref.ref(stack, self._collected.append)
                    n_loads += 1
                self._copies[key] = copies[stack] = copy
                self._copies.move_to_end(key)
            self._drop_unused(n_loads)
        return [copies[stack] for stack in stacks]

    def pin(self, stack: PromptStack) -> None:
        """Exempt a stack's copy from eviction; replaces the one pinned earlier for the same domain."""
        with self._lock:
            self._pinned[stack.domain] = stack
            self._drop_unused(n_loads=0)

    def _drop_unused(self, n_loads: int) -> None:
        """Drop the copies of collected stacks, then evict what exceeds the slots, and report."""
        while self._collected:
            self._copies.pop(self._collected.popleft(), None)
        pinned = set(map(weakref.ref, self._pinned.values()))
        n_surplus = len(self._copies) - self._n_slots
        evicted = [key for key in self._copies if key not in pinned][:n_surplus] if n_surplus > 0 else []
        for key in evicted:
            del self._copies[key]
        if self.observer is not None:
            n_kept = len(pinned & self._copies.keys())
            self.observer.bank_changed(
                n_used=len(self._copies) - n_kept,
                n_free=max(0, self._n_slots - len(self._copies)),
                n_kept=n_kept,
                n_loads=n_loads,
                n_evictions=len(evicted),
            )
