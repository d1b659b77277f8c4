"""One backbone for many domains: combines the towers, the stack loader, the bank and the scorer.

Legend: B rows, C/H/W image, K classes, E joint width, D prompt layers, P prompt tokens, W tower width.
"""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from prompted_clip.backbone import Backbone
from prompted_clip.bank import N_SLOTS, PromptBank
from prompted_clip.heads import ImageFeatures
from prompted_clip.prompts import collate_grids
from prompted_clip.scoring import Ranked, Scorer
from prompted_clip.stack import PromptStack
from prompted_clip.stack_loader import StackLoader
from prompted_clip.transfers import CopyStream, to_host
from prompted_clip.vision import ImageTower

MAX_TEXT_ROWS: Final = 1024
MAX_CONDITIONAL_CLASSES: Final = 1000
TYPICAL_PROMPTS: Final = 12
"""Prompt positions of a typical stack, boosting and adapting together."""


class PromptedClip:
    """A frozen CLIP whose forward takes each row's own prompts; thread-safe if its image tower is.

    Args:
        backbone: the loaded model; shared, never changed.
        image_tower: None for open_clip's own modules.
        max_text_rows: maximum number of texts per forward; pairs of image and class for a conditional head.
        max_conditional_classes: maximum number of classes of a conditional head; each costs a text forward per image.
        bank_slots: maximum number of stacks in device memory.
        num_streams: batches that may run concurrently, each on a thread of its own.

    Attributes:
        bank: the stacks in device memory.
        pipeline_depth: batches that may be queued on the device behind those that run.
        on_progress: called after every forward, on its thread.
        load_stack, plain_stack, boost_stack, with_labels: see `StackLoader`.
        padded_batch_size: see `ImageTower`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        image_tower: ImageTower | None = None,
        max_text_rows: int = MAX_TEXT_ROWS,
        max_conditional_classes: int = MAX_CONDITIONAL_CLASSES,
        bank_slots: int = N_SLOTS,
        num_streams: int = 1,
    ) -> None:
        self.backbone = backbone
        self.bank = PromptBank(backbone.device, n_slots=bank_slots)
        self.image_tower = image_tower or ImageTower(backbone)
        self.padded_batch_size = self.image_tower.padded_batch_size
        self.num_streams = num_streams
        is_cuda = backbone.device.type == "cuda"
        self.pipeline_depth = int(is_cuda)
        self.on_progress: Callable[[], None] = lambda: None
        self._copy_stream = CopyStream(backbone.device) if is_cuda else None  # on the CPU nothing is copied
        self._scorer = Scorer(backbone, max_text_rows=max_text_rows, on_progress=lambda: self.on_progress())
        loader = StackLoader(
            backbone,
            max_text_rows=max_text_rows,
            max_conditional_classes=max_conditional_classes,
            on_progress=lambda: self.on_progress(),
        )
        self.load_stack = loader.from_bundle
        self.plain_stack = loader.plain
        self.boost_stack = loader.boost_only
        self.with_labels = loader.with_labels

    @torch.inference_mode()
    def rank(
        self,
        pixels_BCHW: Tensor,
        stacks: Sequence[PromptStack],
        top_ks: Sequence[int],
        *,
        with_embeddings: bool = False,
    ) -> list[Ranked]:
        """Each row's most probable classes; returns when they are in host memory.

        Args:
            pixels_BCHW: uint8 from `to_pixels`, on the device or in host memory; pinned memory is copied
                asynchronously.
            stacks: one per row, all of one lane; domains and depths may differ.
            top_ks: number of classes per row; a row whose stack has fewer gets all of them.
            with_embeddings: return the rows' embeddings, too.

        Raises:
            ValueError: rows with different numbers of prompt tokens.
        """
        if self._copy_stream is not None:
            pixels_BCHW = self._copy_stream.copy(pixels_BCHW)
        on_device = self.bank.get(stacks)  # held until the answers are back
        images = self._embed(pixels_BCHW, on_device)
        logits_BK = self._scorer.logits(images, on_device)
        best = logits_BK.softmax(dim=-1).topk(min(max(top_ks), logits_BK.shape[1]), dim=-1)
        extra = (images.unit_BE.float(),) if with_embeddings else ()
        found = (best.indices, best.values, *extra)
        ids_BK, probabilities_BK, *embeddings = found if self._copy_stream is None else to_host(*found)
        ids, probabilities = ids_BK.tolist(), probabilities_BK.tolist()
        n_ranked = [min(top_k, len(stack.class_names)) for top_k, stack in zip(top_ks, stacks, strict=True)]
        units = embeddings[0].numpy() if embeddings else repeat(None, len(ids))
        return [Ranked(i[:n], p[:n], f) for i, p, n, f in zip(ids, probabilities, n_ranked, units, strict=True)]

    @torch.inference_mode()
    def encode_images(self, pixels_BCHW: Tensor, stacks: Sequence[PromptStack]) -> ImageFeatures:
        """Features of images as in `rank`, each under its own domain's prompts, on the backbone's device.

        Raises:
            ValueError: rows with different numbers of prompt tokens.
        """
        return self._embed(pixels_BCHW.to(self.backbone.device), self.bank.get(stacks))

    @torch.inference_mode()
    def logits(self, images: ImageFeatures, stack: PromptStack) -> Tensor:
        """Logits of images encoded under this stack's prompts: [B, K] float32 on the backbone's device."""
        return self._scorer.logits(images, self.bank.get([stack] * len(images.unit_BE)))

    @torch.inference_mode()
    def score(self, images: ImageFeatures, stacks: Sequence[PromptStack]) -> list[Tensor]:
        """Per row, the probabilities of its own stack's classes: [K] float32 on the backbone's device."""
        scores_BK = self._scorer.logits(images, self.bank.get(stacks)).softmax(dim=-1)
        return [row_K[: len(stack.class_names)] for row_K, stack in zip(scores_BK, stacks, strict=True)]

    def synchronize(self) -> None:
        """Wait for the current stream of the device; no effect on a CPU.

        It does not wait for the whole device, which would invalidate a CUDA graph capture of another thread.

        Raises:
            RuntimeError: a kernel failed, or the device failed earlier.
        """
        if self.backbone.device.type == "cuda":
            torch.cuda.current_stream(self.backbone.device).synchronize()

    def capture_steps(self, stack: PromptStack) -> list[Callable[[], object]]:
        """CUDA graph captures that the first batches of such a stack need, one call each; none on a CPU."""
        return self.image_tower.capture_steps(stack.image)

    @property
    def max_microbatch(self) -> int | None:
        """Maximum microbatch size on a CPU for a typical stack; None without a limit.

        A larger batch runs as several microbatches in sequence, and all its rows wait for the last one.
        """
        n_threads = max(1, torch.get_num_threads() // self.num_streams)
        return self.image_tower.max_microbatch(TYPICAL_PROMPTS, n_threads)

    def _embed(self, pixels_BCHW: Tensor, stacks: Sequence[PromptStack]) -> ImageFeatures:
        """Image features of pixels on the device under the prompts of device copies."""
        v_BE = self.image_tower(pixels_BCHW, collate_grids([stack.image for stack in stacks]))
        v_BE = v_BE.to(torch.promote_types(v_BE.dtype, torch.float32))
        self.on_progress()
        return ImageFeatures(v_BE, functional.normalize(v_BE, dim=-1))
