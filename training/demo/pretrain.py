"""Pre-trains a demo model on synthetic images and captions; a resumed run is bit-identical.

Each step contrasts a batch of images with *all* captions of the class kind ("striped circle") and of one other kind
("red circle", "striped object", ...). Auxiliary linear heads on the image feature predict colour, texture and shape;
they shorten the initial plateau of contrastive training and are dropped afterwards.

All random choices of step i depend on (seed, i) only, so a checkpoint contains the weights, the optimizer state and i.
Shapes: B images, K captions, E joint dimension.
"""

import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.demo.augment import augment_broadly
from training.demo.captions import KINDS, TEMPLATES, CaptionBook, Kind, targets
from training.demo.models import create, encode_text, exported_state, grow, keep_rows, normalise_pixels
from training.demo.render import Pictures, draw_series, seeded_generator
from training.demo.styles import synthesise
from training.demo.world import N_COLOURS, N_SHAPES, N_TEXTURES, SEEN_PAIRS
from training.files import write_atomic

MAX_LOGIT_SCALE: Final = 100.0
HEAD_SCALE: Final = 10.0
OTHER_KIND_WEIGHT: Final = 0.5
_OTHER_KINDS: Final[tuple[Kind, ...]] = tuple(kind for kind in KINDS if kind != "texture shape")


@dataclass(frozen=True)
class PretrainPlan:
    """Hyperparameters of a pre-training.

    Attributes:
        arch: an open_clip configuration in `prompted_clip/demo`.
        n_steps: optimizer steps.
        n_pictures: number of training images, without held-out pairs.
        batch_size: images per step.
        peak_lr: learning rate after warm-up, followed by a cosine decay to zero.
        n_cosine_steps: length of the cosine schedule, >= n_steps; None for n_steps.
        n_warmup_steps: steps of linear warm-up.
        weight_decay: AdamW's weight decay.
        augmented_share: share of augmented images.
        styled_share: share of images in a synthesised style of their own.
        seed: seed of images, initial weights and all steps.
    """

    arch: str
    n_steps: int
    n_pictures: int
    batch_size: int = 128
    peak_lr: float = 1.5e-3
    n_cosine_steps: int | None = None
    n_warmup_steps: int = 50
    weight_decay: float = 0.05
    augmented_share: float = 0.0
    styled_share: float = 0.0
    seed: int = 1


@dataclass(frozen=True)
class Progress:
    """Losses and accuracy of a finished step."""

    step: int
    class_loss: float
    other_loss: float
    head_loss: float
    class_accuracy: float


class CheckpointMismatchError(ValueError):
    """The checkpoint belongs to another plan."""


def learning_rate(plan: PretrainPlan, step: int) -> float:
    """Learning rate of a step: linear warm-up, then cosine decay."""
    warmup = min(1.0, (step + 1) / max(1, plan.n_warmup_steps))
    return plan.peak_lr * warmup * 0.5 * (1 + math.cos(math.pi * step / (plan.n_cosine_steps or plan.n_steps)))


class Pretraining:
    """The state of a pre-training: model, heads, optimizer and step."""

    def __init__(self, plan: PretrainPlan, grow_from: Path | None = None) -> None:
        """Initialize the weights.

        Args:
            plan: hyperparameters.
            grow_from: checkpoint or exported weights (`.safetensors`, whose heads are random) of a shallower model to
                grow this one from; None for random weights.
        """
        self.plan = plan
        self.book = CaptionBook()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            self.model = create(plan.arch)
            keep_rows(self.model, self.book.vocabulary_V)
            n_features = self.model.text_projection.shape[1]
            self.heads = nn.ModuleList([nn.Linear(n_features, n) for n in (N_COLOURS, N_TEXTURES, N_SHAPES)])
        if grow_from is not None and grow_from.suffix == ".safetensors":
            self.model.load_state_dict(grow(exported_state(grow_from, self.book.vocabulary_V), self.model))
        elif grow_from is not None:
            small = torch.load(grow_from, weights_only=True)
            self.model.load_state_dict(grow(small["model"], self.model))
            self.heads.load_state_dict(small["heads"])
        self.parameters = [*self.model.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=plan.peak_lr, weight_decay=plan.weight_decay, betas=(0.9, 0.98)
        )
        self.n_done = 0
        self._pool: Pictures | None = None

    @property
    def pool(self) -> Pictures:
        """The training images, drawn on first use."""
        if self._pool is None:
            self._pool = draw_series(self.plan.seed, self.plan.n_pictures, pairs=SEEN_PAIRS)
        return self._pool

    def _contrast(self, kind: Kind, features_BE: Tensor, pictures: Pictures, template: str) -> tuple[Tensor, Tensor]:
        """Contrastive loss against all captions of a kind (full captions: those of this batch)."""
        tokens_KT, target_B = self.book.tokens(kind, template), targets(kind, pictures)
        if kind == "colour texture shape":
            rows, target_B = torch.unique(target_B, return_inverse=True)
            tokens_KT = tokens_KT[rows]
        scale = self.model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return scale * features_BE @ encode_text(self.model, tokens_KT).T, target_B

    def step(self) -> Progress:
        """Run one optimizer step."""
        plan, generator = self.plan, seeded_generator(self.plan.seed, self.n_done, 2)
        batch = self.pool.only(torch.randint(plan.n_pictures, (plan.batch_size,), generator=generator))
        pixels = batch.pixels.float() / 255
        if plan.augmented_share > 0:
            pixels = augment_broadly(pixels, plan.augmented_share, generator)
        if plan.styled_share > 0:
            is_styled = torch.rand(len(pixels), generator=generator) < plan.styled_share
            pixels[is_styled] = synthesise(pixels[is_styled], generator)
        choices = torch.randint(len(TEMPLATES), (2,), generator=generator).tolist()
        other_kind = _OTHER_KINDS[int(torch.randint(len(_OTHER_KINDS), (), generator=generator))]

        features_BE = F.normalize(self.model.encode_image(normalise_pixels(pixels * 255)), dim=-1)
        logits, target_B = self._contrast("texture shape", features_BE, batch, TEMPLATES[choices[0]])
        class_loss = F.cross_entropy(logits, target_B)
        other_loss = F.cross_entropy(*self._contrast(other_kind, features_BE, batch, TEMPLATES[choices[1]]))
        attributes = (batch.colours, batch.textures, batch.shapes)
        head_loss = torch.stack(
            [
                F.cross_entropy(HEAD_SCALE * head(features_BE), truth)
                for head, truth in zip(self.heads, attributes, strict=True)
            ]
        ).sum()

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(plan, self.n_done)
        self.optimizer.zero_grad()
        torch.autograd.backward(class_loss + OTHER_KIND_WEIGHT * other_loss + head_loss)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.n_done += 1
        accuracy = (logits.argmax(1) == target_B).float().mean()
        return Progress(self.n_done, class_loss.item(), other_loss.item(), head_loss.item(), accuracy.item())

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        state = {
            "plan": asdict(self.plan),
            "n_done": self.n_done,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())

    def resume(self, path: Path) -> None:
        """Load a checkpoint.

        Raises:
            CheckpointMismatchError: it belongs to another plan.
        """
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["plan"] != asdict(self.plan):
            raise CheckpointMismatchError(
                f"the checkpoint {path} belongs to the plan {state['plan']}, not {asdict(self.plan)}; "
                "remove it or use another folder"
            )
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.n_done = state["n_done"]


def pretrain(
    plan: PretrainPlan,
    checkpoint: Path,
    *,
    grow_from: Path | None = None,
    n_steps_per_save: int = 200,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> Pretraining:
    """Train to the end of the plan, resuming from the checkpoint if it exists.

    Args:
        plan: hyperparameters.
        checkpoint: file written every `n_steps_per_save` steps and at the end.
        grow_from: see `Pretraining`.
        n_steps_per_save: steps between checkpoints.
        on_step: called after every step.
    """
    run = Pretraining(plan, grow_from)
    if checkpoint.exists():
        run.resume(checkpoint)
    while run.n_done < plan.n_steps:
        on_step(run.step())
        if run.n_done % n_steps_per_save == 0 or run.n_done == plan.n_steps:
            run.save(checkpoint)
    return run
