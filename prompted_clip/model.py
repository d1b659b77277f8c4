"""One backbone answering for many domains: joins the towers, makes stacks of bundles, runs rows under their stacks.

A stack lies in host memory and knows no device. To run, it is brought to the device's bank, and may leave again.

Legend: B rows, C/H/W image, K classes, E joint width, D prompt layers, P prompt tokens, W tower width.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone
from prompted_clip.bank import N_SLOTS, PromptBank
from prompted_clip.heads import ImageFeatures
from prompted_clip.internals import unit_norm
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.prompts import PromptGrid
from prompted_clip.scoring import Ranked, Ranking, Scorer
from prompted_clip.slot import Slot
from prompted_clip.stack import PromptStack
from prompted_clip.stack_maker import StackMaker
from prompted_clip.transfers import Outbound, sent
from prompted_clip.vision import embed_image

MAX_TEXT_ROWS: Final = 1024
MAX_CONDITIONAL_CLASSES: Final = 1000
USUAL_PROMPTS: Final = 12
"""Positions of an ordinary stack's image prompts, boosting and adapting together."""

T = TypeVar("T")

ImageTower = Callable[[Tensor, PromptGrid | None], Tensor]
"""From uint8 pixels [B, 3, H, W] on the backbone's device and their prompts to embeddings [B, E] in its dtype."""


class PromptedClip:
    """A frozen CLIP whose forward takes every row's own prompts.

    Args:
        backbone: the loaded model; shared, never changed.
        image_tower: what runs the image tower; None walks open_clip's own modules.
        max_text_rows: texts that go through the text tower at once; pairs of image and class for a conditional head.
        max_conditional_classes: most classes of a conditional head, each of which costs a text forward per image.
        bank_slots: most stacks on the device at once.
        kept_slots: how many of them may be kept there for good.
        n_at_once: see below.

    Attributes:
        bank: which stacks are on the device.
        image_tower: what runs the image tower.
        n_at_once: forwards that may run side by side; more than one needs an image tower that several threads may call.
        n_ahead: batches beside those that may be brought to the device and begun behind them.
        on_progress: called after every forward, on the thread that runs it; whoever watches for a hung device sets it.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        image_tower: ImageTower | None = None,
        max_text_rows: int = MAX_TEXT_ROWS,
        max_conditional_classes: int = MAX_CONDITIONAL_CLASSES,
        bank_slots: int = N_SLOTS,
        kept_slots: int = 0,
        n_at_once: int = 1,
    ) -> None:
        self.backbone = backbone
        self.bank = PromptBank(backbone, n_slots=bank_slots, n_kept=kept_slots)
        self.image_tower = image_tower or self._walked_tower
        self.n_at_once = n_at_once
        self.n_ahead = int(backbone.device.type == "cuda")
        self._outbound = Outbound(backbone.device)
        self.on_progress: Callable[[], None] = lambda: None
        self._scorer = Scorer(
            backbone, self.bank.storage, max_text_rows=max_text_rows, on_progress=lambda: self.on_progress()
        )
        self._maker = StackMaker(
            backbone,
            max_text_rows=max_text_rows,
            max_conditional_classes=max_conditional_classes,
            check=self.bank.refuse_too_large,
            on_progress=lambda: self.on_progress(),
        )

    def load_stack(self, bundle: Bundle, *, version: int | None = None) -> PromptStack:
        """Make a stack of a validated bundle, in host memory; the device is not touched.

        Args:
            bundle: from `prompt_store.bundle.read_bundle`.
            version: its number in the store, carried into answers.

        Raises:
            StackMismatchError: made for another backbone, deeper than a tower, too large for the bank, or too many
                classes for a conditional head.
            TextTooLongError: a class of a conditional head does not fit the text tower together with the prompts.
        """
        return self._maker.of_bundle(bundle, version=version)

    def plain_stack(self, domain: str, class_names: Sequence[str], templates: Sequence[str]) -> PromptStack:
        """The zero-shot baseline: no prompts, text features of the plain backbone.

        Raises:
            TextTooLongError: a class does not fit the text tower.
        """
        return self._maker.plain(domain, class_names, templates)

    def boost_stack(self, stack: PromptStack) -> PromptStack:
        """What the boosting prompts alone answer: without adapting prompts and what was learned on top.

        Raises:
            StackMismatchError: the stack has no boosting prompts, or no template to encode its classes with.
        """
        return self._maker.boosted(stack)

    def with_labels(self, stack: PromptStack, labels: Sequence[str]) -> PromptStack:
        """Open vocabulary: the domain's own prompts, other classes.

        A class head knows the bundle's own classes only and is left out; a conditional head goes on with other classes.

        Args:
            stack: whose prompts to use.
            labels: the classes to choose among, at least one.

        Raises:
            StackMismatchError: the stack can serve its own classes only, has no template, or a conditional head would
                get too many classes.
            TextTooLongError: a label does not fit the text tower together with the prompts.
        """
        return self._maker.with_labels(stack, labels)

    @torch.inference_mode()
    def rank(self, pixels_BCHW: Tensor, stacks: Sequence[PromptStack], top_ks: Sequence[int]) -> list[Ranked]:
        """Each row's most probable classes; nothing else leaves the device.

        Any thread may call it. While the device works on one batch, another thread's comes to it, and is begun as soon
        as the device is free.

        Args:
            pixels_BCHW: uint8 from `to_pixels`, on any device.
            stacks: one per row, all of one lane; domains and depths may differ.
            top_ks: how many classes each row wants; a row whose stack has fewer gets all of them.

        Raises:
            ValueError: rows with different numbers of prompt tokens in one batch.
        """
        on_their_way = self._outbound.send(pixels_BCHW)

        def work(rows: list[int], slots: list[Slot]) -> list[tuple[Ranking, int]]:
            images = self._embed(_some(on_their_way.received(), rows), slots)
            ranking = self._scorer.rank(images, slots, [top_ks[row] for row in rows])
            return [(ranking, index) for index in range(len(rows))]

        return [ranking.rows[index] for ranking, index in self._in_parts(stacks, work)]

    @torch.inference_mode()
    def encode_images(self, pixels_BCHW: Tensor, stacks: Sequence[PromptStack]) -> ImageFeatures:
        """Image features, each row under its own domain's prompts.

        Args:
            pixels_BCHW: as in `rank`.
            stacks: likewise.

        Returns:
            What `score` needs, on the backbone's device.

        Raises:
            ValueError: rows with different numbers of prompt tokens in one batch.
        """
        v_BE = torch.stack(
            self._in_parts(
                stacks, lambda rows, slots: self._embed(_some(pixels_BCHW, rows), slots).embeddings_BE.unbind()
            )
        )
        return ImageFeatures(v_BE, unit_norm(v_BE))

    @torch.inference_mode()
    def logits(self, images: ImageFeatures, stack: PromptStack) -> Tensor:
        """Every image's scores over one stack's classes, before the softmax.

        Args:
            images: from `encode_images` under this stack's prompts.
            stack: whose classes.

        Returns:
            [B, K] float32, on the backbone's device.
        """
        n_rows = len(images.unit_BE)
        return torch.stack(
            self._in_parts([stack] * n_rows, lambda _, slots: self._scorer.logits(images, slots).unbind())
        )

    @torch.inference_mode()
    def score(self, images: ImageFeatures, stacks: Sequence[PromptStack]) -> list[Tensor]:
        """Each row's probabilities over its own domain's classes.

        Args:
            images: from `encode_images`.
            stacks: one per row.

        Returns:
            Per row [K of its stack], float32, on the backbone's device.
        """

        def work(rows: list[int], slots: list[Slot]) -> list[Tensor]:
            scores_BK = self._scorer.logits(images.of(sent(rows, self.backbone.device)), slots).softmax(dim=-1)
            return [row_K[: slot.n_classes] for row_K, slot in zip(scores_BK, slots, strict=True)]

        return self._in_parts(stacks, work)

    def preparations(self, stack: PromptStack) -> list[Callable[[], None]]:
        """What the first batches under such a stack would have to wait for, in short steps for the device's thread.

        Nothing on a CPU, nor where other stacks of the same shape have been prepared.
        """
        prepare: Callable[[PromptGrid | None], list[Callable[[], None]]] | None
        prepare = getattr(self.image_tower, "preparations", None)
        return prepare(stack.image) if prepare is not None else []

    def n_padded(self, n_rows: int) -> int:
        """Rows that the image tower really computes for so many."""
        pad: Callable[[int], int] | None = getattr(self.image_tower, "n_padded", None)
        return pad(n_rows) if pad is not None else n_rows

    @property
    def rows_together(self) -> int | None:
        """Rows with the prompts of an ordinary stack that a CPU takes together; None where a batch is taken whole.

        Of more it takes one part after the other, and every row waits for the last part.
        """
        together: Callable[[int, int], int] | None = getattr(self.image_tower, "rows_together", None)
        if self.backbone.device.type != "cpu" or together is None:
            return None
        return together(USUAL_PROMPTS, max(1, torch.get_num_threads() // self.n_at_once))

    def _in_parts(self, stacks: Sequence[PromptStack], work: Callable[[list[int], list[Slot]], Sequence[T]]) -> list[T]:
        """One answer per row, worked out while its stack is held: in one go, or in as many as the bank needs."""
        answers: dict[int, T] = {}
        waiting = list(range(len(stacks)))
        while waiting:
            with self.bank.hold([stacks[row] for row in waiting]) as held:
                rows = [waiting[index] for index in held.rows]
                answers.update(zip(rows, work(rows, held.slots), strict=True))
            waiting = [row for row in waiting if row not in answers]
        return [answers[row] for row in range(len(stacks))]

    def _embed(self, pixels_BCHW: Tensor, slots: Sequence[Slot]) -> ImageFeatures:
        """Image features of rows whose stacks are held."""
        v_BE = self.image_tower(
            pixels_BCHW.to(self.backbone.device, non_blocking=True), self.bank.storage.prompts(slots)
        )
        v_BE = v_BE.to(torch.promote_types(v_BE.dtype, torch.float32))
        self.on_progress()
        return ImageFeatures(v_BE, unit_norm(v_BE))

    def _walked_tower(self, pixels_BCHW: Tensor, grid: PromptGrid | None) -> Tensor:
        return embed_image(self.backbone, normalize_pixels(pixels_BCHW, self.backbone.preprocess), grid)


def _some(pixels_BCHW: Tensor, rows: list[int]) -> Tensor:
    """Some rows, in ascending order, of the pixels; all of them without a copy."""
    if len(rows) == len(pixels_BCHW):
        return pixels_BCHW
    return pixels_BCHW.index_select(0, sent(rows, pixels_BCHW.device))
