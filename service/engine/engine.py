"""Runs batches on the device's threads; nothing else in the service touches the device.

A batch is one forward over rows of one lane; their domains may differ. On a GPU one thread waits for its batch while
another assembles the next one, copies it to the device and queues it behind the first (pipeline depth 1). On a CPU
batches run concurrently, one per core, so that they need not synchronise after each of a forward's 150 steps: 32.5
against 21.0 images/s at batch size 1 on two cores, ViT-B-16. A batch that runs alone uses all cores.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from prompted_clip.bank import BankObserver
from service.engine.device_health import Activity, BatchLimit, Fault, fault_of
from service.errors import DeviceLostError, DeviceMemoryError, InferenceFailedError, ServiceError
from service.inference import Prediction

if TYPE_CHECKING:
    from prompt_store.bundle import Bundle
    from prompted_clip.backbone import Backbone
    from prompted_clip.model import PromptedClip
    from prompted_clip.scoring import Ranked
    from prompted_clip.stack import PromptStack

logger = logging.getLogger(__name__)

T = TypeVar("T")

STUCK_AFTER_S: Final = 30.0
NEEDS_EMBEDDING: Final = attrgetter("embedding")
LOST: Final = "The device failed and this process is restarting. Retry later."


class EngineObserver(BankObserver, Protocol):
    """Receives events for metrics; methods must be quick and must not raise."""

    def batch_running(self, n_domains: int, n_rows: int, n_padded: int) -> None:
        """A batch starts: distinct domains, rows, and rows with padding."""


@dataclass(frozen=True)
class EngineRow:
    """One image: uint8 [3, H, W] pixels, its domain's stack, the number of classes, and whether to embed it."""

    pixels: NDArray[np.uint8]
    stack: PromptStack
    top_k: int
    embedding: bool = False


class RowResult(NamedTuple):
    """The result for one row: classes, most probable first, and as in `ImageResult` its embedding."""

    predictions: list[Prediction]
    embedding: bytes | None


class Engine:
    """Runs a model on threads of its own.

    Args:
        model: `num_streams` batches run concurrently.
        observer: for metrics.
        resident_domains: domains whose live stacks are pinned in the bank.
        stuck_after_s: longest time without progress during a call. A call may take longer, since every forward counts
            as progress, and encoding many texts takes many forwards.

    Attributes:
        backbone: the model's.
        backend, dtype: see `ImageTower`.
        num_streams: batches that run concurrently.
        pipeline_depth: batches that are prepared meanwhile.
        activity: calls in progress on the device.
        is_lost: only a new process can use the device again.
        batch_limit: the batch size, reduced after repeated out-of-memory errors.
        n_out_of_memory: calls that ran out of device memory.
    """

    def __init__(
        self,
        model: PromptedClip,
        *,
        observer: EngineObserver | None = None,
        resident_domains: Collection[str] = (),
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        self._model = model
        self._resident_domains = frozenset(resident_domains)
        self.backbone: Backbone = model.backbone
        self.backend, self.dtype = model.image_tower.backend, model.image_tower.dtype
        self.num_streams, self.pipeline_depth = model.num_streams, model.pipeline_depth
        self.activity = Activity(stuck_after_s)
        self.is_lost = False
        self.batch_limit = BatchLimit()
        self.n_out_of_memory = 0
        model.on_progress = self.activity.report_progress
        self._observer = model.bank.observer = observer
        n_threads = torch.get_num_threads()
        self._loader = _executor("load", 1, n_torch_threads=1)
        self._all_cores = self._per_core = _executor("device", 1 + model.pipeline_depth, n_torch_threads=n_threads)
        if model.num_streams > 1:
            share = max(1, n_threads // model.num_streams)
            self._per_core = _executor("core", model.num_streams, n_torch_threads=share)
        # A batch on all cores counts as one: no batch starts without a free core.
        self._free = threading.Semaphore(model.num_streams + model.pipeline_depth)
        self._n_calls = 0
        self._was_concurrent = False

    def max_batch_rows(self, n_allowed: int) -> int:
        """Most rows per batch, at least one, so that concurrent batches have `n_allowed` together."""
        n_own = max(1, n_allowed // self.num_streams)
        return min(n_own, self._model.max_microbatch or n_own)

    async def run(self, rows: Sequence[EngineRow]) -> list[RowResult | Exception]:
        """Answer a batch of rows of one lane; a failed row gets its exception.

        A batch that fails is bisected, so that only the rows at fault fail: at most log2(n) extra forwards per row.

        Raises:
            DeviceLostError: the device cannot be used again in this process.
        """
        if self._observer is not None:
            n_domains = len({row.stack.domain for row in rows})
            n_padded = self._model.padded_batch_size(len(rows)) if self._model.pipeline_depth else len(rows)
            self._observer.batch_running(n_domains, len(rows), n_padded)
        return await self._call(partial(self._run, rows), n_rows=len(rows))

    async def load(self, bundle: Bundle) -> PromptStack:
        """Load a bundle into host memory, on a thread of its own.

        Raises:
            StackMismatchError: it does not fit the backbone, or a conditional head has too many classes.
            TextTooLongError: a class of a conditional head does not fit the text tower.
            DeviceLostError: as in `run`.
        """
        self._raise_if_lost()
        return await asyncio.get_running_loop().run_in_executor(self._loader, self._model.load_stack, bundle)

    async def smoke_test(self, stack: PromptStack) -> None:
        """Run one grey image through a new stack.

        Raises:
            InferenceFailedError: the forward failed or returned NaN or infinity.
            DeviceMemoryError: out of device memory.
        """
        side = self.backbone.image_size
        row = EngineRow(np.full((3, side, side), 128, dtype=np.uint8), stack, top_k=1)
        (answer,) = await self._call(lambda: self._run([row]))
        if isinstance(answer, Exception):
            raise answer

    async def capture_graphs(self, stack: PromptStack) -> None:
        """Capture the CUDA graphs that a stack's first batches need, one at a time, while other batches run."""
        for step in self._model.capture_steps(stack):
            self._raise_if_lost()
            await asyncio.get_running_loop().run_in_executor(self._loader, self._guarded, step)

    def went_live(self, stack: PromptStack) -> None:
        """Pin a stack that went live, if its domain is resident."""
        if stack.domain in self._resident_domains:
            self._model.bank.pin(stack)

    async def boost_stack(self, stack: PromptStack) -> PromptStack:
        """The stack with its boosting prompts only; encodes text.

        Raises:
            StackMismatchError: it has no boosting prompts.
            DeviceMemoryError: out of device memory.
        """
        return await self._call(lambda: self._model.boost_stack(stack))

    async def with_labels(self, stack: PromptStack, labels: Sequence[str]) -> PromptStack:
        """The stack with other classes; encodes text.

        Raises:
            StackMismatchError: it can serve its own classes only.
            TextTooLongError: a label does not fit the text tower.
            DeviceMemoryError: out of device memory.
        """
        return await self._call(lambda: self._model.with_labels(stack, labels))

    def close(self) -> None:
        """Shut down the threads once their current calls are done."""
        for executor in (self._loader, self._all_cores, self._per_core):
            executor.shutdown(wait=False, cancel_futures=True)

    async def _call(self, work: Callable[[], T], *, n_rows: int = 1) -> T:
        """Run work for `n_rows` images on all cores or on one."""
        self._raise_if_lost()
        self._n_calls += 1
        try:
            if self.num_streams > 1:
                await asyncio.sleep(0)  # let concurrent calls be counted
            is_concurrent = self._n_calls > 1
            takes_all = not is_concurrent and not self._was_concurrent and n_rows < self.num_streams
            self._was_concurrent = is_concurrent
            executor = self._all_cores if takes_all else self._per_core
            running = asyncio.get_running_loop().run_in_executor(executor, self._on_device, work)
        except BaseException:
            self._n_calls -= 1
            raise
        running.add_done_callback(self._count_finished)
        # Cancelling the caller does not stop the thread.
        return await asyncio.shield(running)

    def _count_finished(self, _: object) -> None:
        self._n_calls -= 1

    def _raise_if_lost(self) -> None:
        if self.is_lost:
            raise DeviceLostError(LOST)

    def _on_device(self, work: Callable[[], T]) -> T:
        """Run work on a device thread when it is free."""
        with self._free:
            return self._guarded(work)

    def _guarded(self, work: Callable[[], T]) -> T:
        """Run work on this thread; detects a lost device and out of memory."""
        try:
            with self.activity.call():
                return work()
        except Exception as error:
            fault = fault_of(error, self._model.synchronize)
            if fault is Fault.LOST:
                self.is_lost = True
                logger.critical("device.lost", exc_info=True)
                raise DeviceLostError(LOST) from error
            if fault is Fault.NONE:
                raise
        # Outside the handler, whose traceback keeps the failed work's tensors alive.
        self._free_memory()
        raise DeviceMemoryError("Out of device memory. Retry later.")

    def _free_memory(self) -> None:
        logger.warning("device.out_of_memory")
        self.n_out_of_memory += 1
        torch.cuda.empty_cache()  # no effect before CUDA is used

    def _run(self, rows: Sequence[EngineRow], *, was_full: bool = False) -> list[RowResult | Exception]:
        """Run one batch, in halves if it exceeds `batch_limit`, and again in halves if it fails.

        With `was_full` it is part of a batch that ran out of memory.
        """
        self._raise_if_lost()
        self.activity.report_progress()
        if len(rows) > (self.batch_limit.max_rows or len(rows)):
            return self._run_halves(rows, was_full=was_full)
        try:
            return self._forward(rows)
        except Exception as error:
            fault = fault_of(error, self._model.synchronize)
            if fault is Fault.LOST:
                raise
            failure: ServiceError = DeviceMemoryError("Out of device memory for this image. Retry later.")
            if fault is Fault.NONE:
                failure = InferenceFailedError("The model failed on this image.")
                if len(rows) == 1:
                    logger.exception("row.failed", extra={"domain": rows[0].stack.domain})
        # Outside the handler, as above.
        is_full = isinstance(failure, DeviceMemoryError)
        if is_full and not was_full:
            self._free_memory()
            self.batch_limit.out_of_memory(len(rows))
        return [failure] if len(rows) == 1 else self._run_halves(rows, was_full=was_full or is_full)

    def _run_halves(self, rows: Sequence[EngineRow], *, was_full: bool) -> list[RowResult | Exception]:
        middle = len(rows) // 2
        return [*self._run(rows[:middle], was_full=was_full), *self._run(rows[middle:], was_full=was_full)]

    def _forward(self, rows: Sequence[EngineRow]) -> list[RowResult | Exception]:
        side, is_gpu = self.backbone.image_size, self.backbone.device.type == "cuda"
        pixels = torch.empty((len(rows), 3, side, side), dtype=torch.uint8, pin_memory=is_gpu)
        np.stack([row.pixels for row in rows], out=pixels.numpy())
        stacks, top_ks = zip(*[(row.stack, row.top_k) for row in rows], strict=True)
        ranked = self._model.rank(pixels, stacks, top_ks, with_embeddings=any(map(NEEDS_EMBEDDING, rows)))
        return [_result(row, one) for row, one in zip(rows, ranked, strict=True)]


def _result(row: EngineRow, ranked: Ranked) -> RowResult | Exception:
    if not all(map(math.isfinite, ranked.probabilities)):
        return InferenceFailedError("The model returned NaN or infinity for this image.")
    names = row.stack.class_names
    predictions = [
        Prediction(class_id, names[class_id], probability)
        for class_id, probability in zip(ranked.class_ids, ranked.probabilities, strict=True)
    ]
    if not row.embedding or ranked.embedding_E is None:
        return RowResult(predictions, None)
    return RowResult(predictions, ranked.embedding_E.astype("<f4").tobytes())


def _executor(name: str, n_threads: int, *, n_torch_threads: int) -> ThreadPoolExecutor:
    """Threads that use `n_torch_threads` cores each; torch would give them the last number set on any thread."""
    return ThreadPoolExecutor(n_threads, name, initializer=partial(torch.set_num_threads, n_torch_threads))
