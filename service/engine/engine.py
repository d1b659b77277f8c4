"""Owns the device: everything that touches it happens on the device's threads, one per core on a CPU, two on a GPU.

Knows the model and its stacks. Does not know HTTP, queues or the store. A batch is one forward over rows of one lane,
whatever their domains. A stack becomes ready in host memory, off the device's threads; it comes to the device with the
first batch that needs it.

While a GPU works on one batch, the thread that gave it waits, and the other one puts the next batch together, brings
its pixels and stacks to the device and begins it behind the first: between two batches the GPU has nothing to wait for.

Cores that work on batches of their own need not wait for each other after each of a forward's hundred steps; where
something else runs beside, that wait is for the slowest. A batch that has the processor to itself takes all cores: it
is back sooner.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prompt_store.bundle import Bundle
from prompted_clip.bank import BankObserver
from prompted_clip.preprocess import to_pixels
from prompted_clip.scoring import Ranked
from prompted_clip.stack import PromptStack
from prompted_clip.threads import compute_alone
from service.engine.busy_time import BusyTime
from service.engine.serving_model import BackboneFacts, ServingModel
from service.errors import DeviceLostError, InferenceFailedError, OverloadedError
from service.inference import Prediction

logger = logging.getLogger(__name__)

T = TypeVar("T")

STUCK_AFTER_S: Final = 60.0
"""A forward that takes longer than this counts as hung, unless the settings say otherwise."""
LOST_MARKS: Final = (
    "illegal memory access",
    "launch failure",
    "illegal instruction",
    "misaligned address",
    "hardware stack error",
    "uncorrectable ecc",
    "device-side assert",
)
"""What CUDA says when a process will never get an answer from it again."""


@dataclass(frozen=True)
class EngineRow:
    """One image: uint8 [3, H, W] pixels, the stack that answers, and how many classes are wanted."""

    pixels: NDArray[np.uint8]
    stack: PromptStack
    top_k: int

    @property
    def n_text_rows(self) -> int:
        """Text forwards that this image costs; 0 where text features are fixed."""
        return self.stack.n_text_rows


class Engine:
    """Runs a model on the device's threads, and nowhere else.

    Args:
        model: runs as many batches side by side as it says.
        bank_observer: told which stacks come to the device and leave it.
        resident_domains: whose live stacks never leave it.
        stuck_after_s: longest time without a sign of life while there is work. A call may take longer than that: many
            texts are many forwards, and each of them is a sign.
    """

    def __init__(
        self,
        model: ServingModel,
        *,
        bank_observer: BankObserver | None = None,
        resident_domains: Collection[str] = (),
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        self._model = model
        self._stuck_after_s = stuck_after_s
        # Torch gives a new thread the number that was set last, on any thread.
        n_threads = torch.get_num_threads()
        keep_threads = partial(torch.set_num_threads, n_threads)
        self._thread = ThreadPoolExecutor(
            1 + model.pipeline_depth, thread_name_prefix="device", initializer=keep_threads
        )
        self._cores = self._thread
        if model.num_streams > 1:
            share_threads = partial(torch.set_num_threads, max(1, n_threads // model.num_streams))
            self._cores = ThreadPoolExecutor(model.num_streams, thread_name_prefix="core", initializer=share_threads)
        # A batch on all cores counts as one of them: nothing begins that would have no core.
        self._turns = threading.Semaphore(model.num_streams + model.pipeline_depth)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load", initializer=compute_alone)
        self._resident_domains = frozenset(resident_domains)
        self._signs_s: dict[int, float] = {}  # of every thread that is inside a call, the last one
        self._busy = BusyTime()
        self._n_out_of_memory = 0
        self._n_calls = 0
        self._is_crowded = False
        self._model.on_progress = self._show_life
        self._model.bank.observer = bank_observer
        self._is_lost = False

    @property
    def backbone(self) -> BackboneFacts:
        """The backbone that runs here."""
        return self._model.backbone

    @property
    def num_streams(self) -> int:
        """Batches that run side by side."""
        return self._model.num_streams

    @property
    def is_lost(self) -> bool:
        """Whether the device can only be had back by a new process."""
        return self._is_lost

    @property
    def is_busy(self) -> bool:
        """Whether a thread of the device is inside a call."""
        return bool(self._signs_s)

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one thread of the device was inside a call."""
        return self._busy.seconds

    @property
    def n_out_of_memory(self) -> int:
        """Calls that found no memory on the device."""
        return self._n_out_of_memory

    @property
    def is_stuck(self) -> bool:
        """Whether a thread of the device has been inside one forward for far too long."""
        return time.monotonic() - min(self._signs_s.copy().values(), default=math.inf) > self._stuck_after_s

    def to_pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB picture as the backbone's uint8 [3, H, W]; runs in the caller's thread."""
        return to_pixels(image, self.backbone.image_size, self.backbone.preprocess)

    async def run(self, rows: Sequence[EngineRow]) -> Sequence[list[Prediction] | Exception]:
        """Answer one batch of rows of one lane, most probable class first.

        Raises:
            DeviceLostError: the device is gone for good.
        """
        return await self._call(lambda: self._run(rows), n_rows=len(rows))

    async def load(self, bundle: Bundle, version: int | None) -> PromptStack:
        """Make a stack of a bundle, while the device goes on with its work.

        Raises:
            StackMismatchError: it does not fit the backbone or the bank, or its classes cost too much per image.
            TextTooLongError: a class whose text is encoded for every image does not fit.
            DeviceLostError: the device is gone for good.
        """
        self._refuse_if_lost()
        work = partial(self._model.load_stack, bundle, version=version)
        return await asyncio.get_running_loop().run_in_executor(self._loader, work)

    async def try_out(self, stack: PromptStack) -> None:
        """Run one grey image through a new stack, so that a stack which cannot answer never goes live.

        Raises:
            InferenceFailedError: the forward failed or its numbers are not finite.
        """
        side = self.backbone.image_size
        row = EngineRow(np.full((3, side, side), 128, dtype=np.uint8), stack, top_k=1)
        (answer,) = await self._call(lambda: self._run([row]))
        if isinstance(answer, Exception):
            raise answer

    async def prepare(self, stack: PromptStack) -> None:
        """Do beforehand, between the batches of others, what a stack's first batches would have to wait for."""
        for prepare in self._model.capture_steps(stack):
            await self._call(prepare)

    def went_live(self, stack: PromptStack) -> None:
        """Note that a stack answers for its domain from now on; it stays on the device if its domain is to."""
        if stack.domain in self._resident_domains:
            self._model.bank.pin(stack)

    def most_rows(self, n_allowed: int) -> int:
        """Rows that a batch should have at most, at least one.

        Args:
            n_allowed: rows of all batches that run side by side.
        """
        n_own = max(1, n_allowed // self.num_streams)
        return min(n_own, self._model.max_microbatch or n_own)

    def padded_batch_size(self, n_rows: int) -> int:
        """Rows that are really computed for a batch of so many."""
        return self._model.padded_batch_size(n_rows)

    async def boost_stack(self, stack: PromptStack) -> PromptStack:
        """The stack without its adapting prompts and heads; encodes text.

        Raises:
            StackMismatchError: it has no boosting prompts.
            OverloadedError: the device has no memory left for it.
        """
        return await self._call(lambda: self._model.boost_stack(stack))

    async def with_labels(self, stack: PromptStack, labels: Sequence[str]) -> PromptStack:
        """The stack with other classes; encodes text.

        Raises:
            StackMismatchError: it can serve its own classes only.
            TextTooLongError: a label does not fit.
            OverloadedError: the device has no memory left for it.
        """
        return await self._call(lambda: self._model.with_labels(stack, labels))

    def close(self) -> None:
        """Let the threads go once what runs has finished."""
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._cores.shutdown(wait=False, cancel_futures=True)

    async def _call(self, work: Callable[[], T], *, n_rows: int = 1) -> T:
        """Run work for so many images on all cores, or on one."""
        self._refuse_if_lost()
        self._n_calls += 1
        try:
            if self.num_streams > 1:
                await asyncio.sleep(0)  # what begins in the same moment is company
            # Who was joined by others the last time, or has a row for every core, leaves the other cores to others.
            has_company = self._n_calls > 1
            takes_all = not has_company and not self._is_crowded and n_rows < self.num_streams
            self._is_crowded = has_company
            thread = self._thread if takes_all else self._cores
            running = asyncio.get_running_loop().run_in_executor(thread, self._guarded, work)
        except BaseException:
            self._n_calls -= 1
            raise
        running.add_done_callback(self._called)
        # A caller who leaves does not stop the thread, and what it does there stays company for others.
        return await asyncio.shield(running)

    def _called(self, _: object) -> None:
        self._n_calls -= 1

    def _refuse_if_lost(self) -> None:
        if self._is_lost:
            raise DeviceLostError("The device failed; this process is about to be replaced. Send the request again.")

    def _guarded(self, work: Callable[[], T]) -> T:
        """Run on a thread of the device, noticing when the device is gone or full."""
        self._turns.acquire()
        self._signs_s[threading.get_ident()] = time.monotonic()
        try:
            with self._busy:
                return work()
        except torch.OutOfMemoryError:
            logger.warning("device.out_of_memory")
        except RuntimeError as error:
            if any(mark in str(error).lower() for mark in LOST_MARKS):
                self._is_lost = True
                logger.critical("device.lost", exc_info=True)
                raise DeviceLostError("The device failed; this process is about to be replaced.") from error
            raise
        finally:
            del self._signs_s[threading.get_ident()]
            self._turns.release()
        # Outside the handler: its traceback would keep the failed work's tensors alive.
        self._free_memory()
        raise OverloadedError("The device has no memory left for this; try again.", retry_after_s=1.0)

    def _show_life(self) -> None:
        if (thread := threading.get_ident()) in self._signs_s:  # others run the model too: the loader, benchmarks
            self._signs_s[thread] = time.monotonic()

    def _free_memory(self) -> None:
        """After a call that found none."""
        self._n_out_of_memory += 1
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(self, rows: Sequence[EngineRow]) -> list[list[Prediction] | Exception]:
        """One batch on a thread of the device; halves it when memory runs out."""
        try:
            return self._forward(rows)
        except torch.OutOfMemoryError:
            logger.warning("device.out_of_memory", extra={"n_rows": len(rows)})
        # Outside the handler, as above.
        self._free_memory()
        if len(rows) == 1:
            return [OverloadedError("The device has no memory left for this image; try again.", retry_after_s=1.0)]
        middle = len(rows) // 2
        return [*self._run(rows[:middle]), *self._run(rows[middle:])]

    def _forward(self, rows: Sequence[EngineRow]) -> list[list[Prediction] | Exception]:
        ranked = self._model.rank(
            self._stacked([row.pixels for row in rows]), [row.stack for row in rows], [row.top_k for row in rows]
        )
        return [self._shape(row.stack.class_names, one) for row, one in zip(rows, ranked, strict=True)]

    def _stacked(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """One uint8 batch [B, 3, H, W]; pinned where a device will fetch it."""
        shape = (len(pixels), *pixels[0].shape)
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self.backbone.device.type == "cuda")
        np.stack(pixels, out=batch.numpy())
        return batch

    @staticmethod
    def _shape(names: Sequence[str], ranked: Ranked) -> list[Prediction] | Exception:
        if not all(map(math.isfinite, ranked.probabilities)):
            return InferenceFailedError("The model's numbers for this image are not finite.")
        return [
            Prediction(class_id, names[class_id], probability)
            for class_id, probability in zip(ranked.class_ids, ranked.probabilities, strict=True)
        ]
