"""Owns the device: everything that touches it happens on one thread.

Knows the model and its stacks. Does not know HTTP, queues or the store. A batch is one forward over rows of one lane,
whatever their domains; the few most probable classes are picked on the device, so that little travels back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prompt_store.bundle import Bundle
from prompted_clip.heads import ImageFeatures
from prompted_clip.preprocess import to_pixels
from prompted_clip.stack import PromptStack
from service.errors import DeviceLostError, InferenceFailedError, OverloadedError

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


class BackboneFacts(Protocol):
    """What the service reads of a backbone."""

    @property
    def arch(self) -> str:
        """open_clip's name for it."""

    @property
    def pretrained(self) -> str:
        """Where its weights came from."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its weights."""

    @property
    def preprocess(self) -> dict[str, Any]:
        """How images become its input."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""


class ServingModel(Protocol):
    """What the engine asks of a model; `prompted_clip.model.PromptedClip` is one."""

    @property
    def backbone(self) -> BackboneFacts:
        """The frozen backbone."""

    on_progress: Callable[[], None]
    """Called after every forward; the engine puts its own here."""

    def load_stack(self, bundle: Bundle, *, version: int | None = None) -> PromptStack:
        """Put a bundle on the device."""

    def boost_stack(self, stack: PromptStack) -> PromptStack:
        """The stack without its adapting prompts and heads."""

    def with_labels(self, stack: PromptStack, labels: Sequence[str]) -> PromptStack:
        """The stack with other classes."""

    def encode_images(self, pixels_BCHW: Tensor, stacks: Sequence[PromptStack]) -> ImageFeatures:  # noqa: N803
        """Image features, one row each."""

    def score(self, images: ImageFeatures, stacks: Sequence[PromptStack]) -> list[Tensor]:
        """Probabilities over each row's own classes."""


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


@dataclass(frozen=True)
class Prediction:
    """One class and its probability, 0 to 1."""

    class_id: int
    label: str
    probability: float


class Engine:
    """Runs a model on one thread.

    Args:
        model: used from that thread only.
        observe_domains: told the number of distinct domains of every batch.
        stuck_after_s: longest time without a sign of life while there is work. A call may take longer than that: many
            texts are many forwards, and each of them is a sign.
    """

    def __init__(
        self,
        model: ServingModel,
        *,
        observe_domains: Callable[[int], None] = lambda _: None,
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        self._model = model
        self._observe_domains = observe_domains
        self._stuck_after_s = stuck_after_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._last_sign_s: float | None = None
        self._model.on_progress = self._show_life
        self._is_lost = False

    @property
    def backbone(self) -> BackboneFacts:
        """The backbone that runs here."""
        return self._model.backbone

    @property
    def is_lost(self) -> bool:
        """Whether the device can only be had back by a new process."""
        return self._is_lost

    @property
    def is_busy(self) -> bool:
        """Whether the device thread is inside a call."""
        return self._last_sign_s is not None

    @property
    def is_stuck(self) -> bool:
        """Whether the device thread has been inside one forward for far too long."""
        last_s = self._last_sign_s
        return last_s is not None and time.monotonic() - last_s > self._stuck_after_s

    def to_pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB picture as the backbone's uint8 [3, H, W]; runs in the caller's thread."""
        return to_pixels(image, self.backbone.image_size, self.backbone.preprocess)

    async def run(self, rows: Sequence[EngineRow]) -> Sequence[list[Prediction] | Exception]:
        """Answer one batch of rows of one lane, most probable class first.

        Raises:
            DeviceLostError: the device is gone for good.
        """
        self._observe_domains(len({row.stack.domain for row in rows}))
        return await self._call(lambda: self._run(rows))

    async def load(self, bundle: Bundle, version: int | None) -> PromptStack:
        """Put a bundle on the device.

        Raises:
            StackMismatchError: it does not fit the backbone, or its classes cost too much per image.
            OverloadedError: the device has no memory left for it.
            TextTooLongError: a class whose text is encoded for every image does not fit.
        """
        return await self._call(lambda: self._model.load_stack(bundle, version=version))

    async def warm_up(self, stack: PromptStack) -> None:
        """Run one grey image through a new stack, so that a stack which cannot answer never goes live.

        Raises:
            InferenceFailedError: the forward failed or its numbers are not finite.
        """
        side = self.backbone.image_size
        row = EngineRow(np.full((3, side, side), 128, dtype=np.uint8), stack, top_k=1)
        (answer,) = await self._call(lambda: self._run([row]))
        if isinstance(answer, Exception):
            raise answer

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
        """Let the thread go once what runs has finished."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _call(self, work: Callable[[], T]) -> T:
        if self._is_lost:
            raise DeviceLostError("The device failed; this process is about to be replaced. Send the request again.")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    def _guarded(self, work: Callable[[], T]) -> T:
        """Run on the device thread, noticing when the device is gone or full."""
        self._show_life()
        try:
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
            self._last_sign_s = None
        # Outside the handler: its traceback would keep the failed work's tensors alive.
        self._free_memory()
        raise OverloadedError("The device has no memory left for this; try again.", retry_after_s=1.0)

    def _show_life(self) -> None:
        self._last_sign_s = time.monotonic()

    def _free_memory(self) -> None:
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(self, rows: Sequence[EngineRow]) -> list[list[Prediction] | Exception]:
        """One batch on the device thread; halves it when memory runs out."""
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

    @torch.inference_mode()
    def _forward(self, rows: Sequence[EngineRow]) -> list[list[Prediction] | Exception]:
        stacks = [row.stack for row in rows]
        pixels = torch.from_numpy(np.stack([row.pixels for row in rows]))
        scores = self._model.score(self._model.encode_images(pixels, stacks), stacks)
        padded = pad_sequence(scores, batch_first=True, padding_value=-1.0)
        n_best = min(max(row.top_k for row in rows), padded.shape[1])
        best = padded.topk(n_best, dim=1)
        values, indices = best.values.cpu().tolist(), best.indices.cpu().tolist()
        return [self._shape(row, *pair) for row, *pair in zip(rows, values, indices, strict=True)]

    @staticmethod
    def _shape(row: EngineRow, values: list[float], indices: list[int]) -> list[Prediction] | Exception:
        names = row.stack.class_names
        n_best = min(row.top_k, len(names))
        if not np.isfinite(values[:n_best]).all():
            return InferenceFailedError("The model's numbers for this image are not finite.")
        return [
            Prediction(class_id, names[class_id], value)
            for value, class_id in zip(values[:n_best], indices[:n_best], strict=True)
        ]
