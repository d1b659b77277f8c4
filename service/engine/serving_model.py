"""What the service asks of a model; `prompted_clip.model.PromptedClip` is one, and tests have a quicker one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prompt_store.bundle import Bundle
    from prompted_clip.bank import BankObserver
    from prompted_clip.scoring import Ranked
    from prompted_clip.stack import PromptStack


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


class ServingBank(Protocol):
    """What the engine asks of the model's bank of resident stacks; `prompted_clip.bank.PromptBank` is one."""

    observer: BankObserver | None

    def pin(self, stack: PromptStack) -> None:
        """Never evict a stack."""


class ServingModel(Protocol):
    """What the engine asks of a model; `prompted_clip.model.PromptedClip` is one."""

    @property
    def backbone(self) -> BackboneFacts:
        """The frozen backbone."""

    @property
    def bank(self) -> ServingBank:
        """The stacks on the device."""

    num_streams: int
    """Batches that may run side by side, each on a thread that computes alone."""
    pipeline_depth: int
    """Batches beside those that the device may be given already, each by a thread of its own."""
    on_progress: Callable[[], None]
    """Called after every forward; the engine puts its own here."""

    def load_stack(self, bundle: Bundle, *, version: int | None = None) -> PromptStack:
        """Make a stack of a bundle; any thread may call it."""

    def boost_stack(self, stack: PromptStack) -> PromptStack:
        """The stack without its adapting prompts and heads."""

    def with_labels(self, stack: PromptStack, labels: Sequence[str]) -> PromptStack:
        """The stack with other classes."""

    def capture_steps(self, stack: PromptStack) -> list[Callable[[], None]]:
        """What the first batches under such a stack would have to wait for, in short steps."""

    def rank(
        self,
        pixels_BCHW: Tensor,  # noqa: N803
        stacks: Sequence[PromptStack],
        top_ks: Sequence[int],
    ) -> list[Ranked]:
        """Each row's most probable classes."""

    @property
    def max_microbatch(self) -> int | None:
        """Rows from which on a larger batch answers none of them sooner; None if there is none."""

    def padded_batch_size(self, n_rows: int) -> int:
        """Rows that are really computed for so many."""
