"""How much faster training is than a straight transcription of the reference recipe, on identical work, in one run.

The transcription pads every text to the tower's 77 positions, works out every token of the last block, asks the teacher
(or the frozen image tower) about every view at every step, and keeps nothing. The project runs texts at their real
length, works out only the token that is read, and asks frozen models once per fixed view. Both take the same images,
views, order and seeds, so their losses must agree; the largest difference is printed.

    python -m benchmarks.training_speed                         # ViT-B-16 learning from ViT-L-14, random weights
    python -m benchmarks.training_speed --backbone demo-student --teacher demo-teacher --epochs 3
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor, nn

from prompted_clip.backbone import Backbone, load_backbone
from training.adapting.adapter import Adapter
from training.adapting.methods import METHODS
from training.boosting import Booster
from training.caspl_student import CasplStudent
from training.data.view_values import ViewValues
from training.data.views import Views
from training.demo.pages import fill_page
from training.loop import Learner, TrainState, steps_per_epoch, train
from training.prompted_backbone import ClassTokens, PromptedBackbone
from training.recipe import AdaptRecipe, BoostRecipe, Recipe
from training.teacher import Teacher


@dataclass(frozen=True)
class Timing:
    """One phase or method, both ways.

    Attributes:
        name: `boost`, or the method.
        reference_s: seconds per epoch of the transcription, each like the other.
        first_s: seconds of our first epoch, which asks frozen models about every view.
        later_s: seconds of each of our later epochs.
        recipe_epochs: epochs of the method's own recipe.
        ratio: how many times faster a run of that many epochs is.
        loss_difference: largest difference of the two loss curves, relative to the loss.
    """

    name: str
    reference_s: float
    first_s: float
    later_s: float
    recipe_epochs: int
    ratio: float
    loss_difference: float


class PaddedBackbone(PromptedBackbone):
    """Texts as the reference repositories run them: always at the tower's full length."""

    def tokenize(self, class_names: Sequence[str], template: str, *, n_prompts: int) -> ClassTokens:
        """As `PromptedBackbone.tokenize`, padded to the context length; what stands behind EOT changes no number."""
        tokens = super().tokenize(class_names, template, n_prompts=n_prompts)
        n_missing = self.backbone.context_length - n_prompts - self.n_text_boost - tokens.ids_KT.shape[1]
        return ClassTokens(torch.nn.functional.pad(tokens.ids_KT, (0, n_missing)), tokens.eot_K)


class AskedEachStep(ViewValues):
    """A frozen model that is asked again whenever its answer is needed."""

    def get(self, indices: Tensor, epoch: int, pixels_BCHW: Tensor | None = None) -> Tensor:
        """Rows of some images, computed now."""
        with torch.no_grad():
            return self._compute(self._views.load(indices.tolist(), epoch) if pixels_BCHW is None else pixels_BCHW)

    def fill(self, epoch: int, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Nothing is kept."""


def whole_block(block: nn.Module, x_BNW: Tensor, at_B: Tensor, *, is_causal: bool) -> Tensor:
    """`prompted_clip.internals.read_block` as the reference repositories do it: all tokens, then one is read."""
    mask = nn.Transformer.generate_square_subsequent_mask(x_BNW.shape[1]) if is_causal else None
    outputs_BNW: Tensor = block(x_BNW, attn_mask=mask)
    return outputs_BNW[torch.arange(len(x_BNW)), at_B].unsqueeze(1)


def write_images(folder: Path, n_images: int, size: int) -> list[Path]:
    """Noise photographs; speed does not depend on what they show."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(n_images)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return paths


def timed(learner: Learner, recipe: Recipe) -> tuple[list[float], list[float]]:
    """Seconds of each epoch of a run, and its losses."""
    marks_s = [time.perf_counter()]
    n_per_epoch = steps_per_epoch(recipe, learner.n_images)

    def mark(run: TrainState) -> None:
        if run.step % n_per_epoch == 0:
            marks_s.append(time.perf_counter())

    losses = train(learner, recipe, on_step=mark).losses
    return [end - start for start, end in pairwise(marks_s)], losses


def compare(name: str, reference: Learner, ours: Learner, recipe: Recipe, recipe_epochs: int) -> Timing:
    """Run both."""
    with mock.patch("prompted_clip.prompts.read_block", whole_block):
        reference_epochs_s, expected = timed(reference, recipe)
    (first_s, *later_epochs_s), found = timed(ours, recipe)
    reference_s, later_s = statistics.median(reference_epochs_s), statistics.median(later_epochs_s)
    ratio = recipe_epochs * reference_s / (first_s + (recipe_epochs - 1) * later_s)
    difference = max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(expected, found, strict=True))
    return Timing(name, reference_s, first_s, later_s, recipe_epochs, ratio, difference)


def boosters(
    student: Backbone, teacher: Backbone, names: list[str], views: Views, recipe: BoostRecipe
) -> tuple[Booster, Booster]:
    """The transcription's and ours."""
    reference, ours = (
        Booster(CasplStudent(student, names, recipe), Teacher(teacher, names, recipe.teacher_template), views, recipe)
        for _ in range(2)
    )
    padded = PaddedBackbone(student).tokenize(names, recipe.template, n_prompts=recipe.text_tokens)
    reference.student._tokens = padded  # type: ignore[attr-defined]
    reference._teacher_logits = AskedEachStep(views, reference._compute_teacher_logits)
    return reference, ours


def adapters(
    name: str, student: Backbone, names: list[str], views: Views, labels: list[int], recipe: AdaptRecipe
) -> tuple[Adapter, Adapter]:
    """The transcription's and ours."""
    reference, ours = (
        Adapter(METHODS[name].build(base_model, names, recipe), base_model, views, labels, recipe)
        for base_model in (PaddedBackbone(student), PromptedBackbone(student))
    )
    asked = AskedEachStep(views, reference._feature_values._compute)
    reference._feature_values = reference._reference_values = asked
    return reference, ours


def measure(
    backbone: str, teacher: str, *, n_images: int, n_classes: int, epochs: int, methods: Sequence[str], console: Console
) -> list[Timing]:
    """Time boosting and every method both ways.

    Args:
        backbone: open_clip name of the student; random weights unless packaged.
        teacher: of the teacher, likewise.
        n_images: images of an epoch.
        n_classes: of the domain.
        epochs: of each run, at least 2.
        methods: keys of `METHODS`.
        console: told what is running.
    """
    student = load_backbone(backbone, random_seed=None if backbone.startswith("demo") else 0)
    large = load_backbone(teacher, random_seed=None if teacher.startswith("demo") else 1)
    names = [f"class number {index}" for index in range(n_classes)]
    plain: dict[str, Any] = {"augmentation": "none", "warmup_epochs": 0, "epochs": epochs}
    timings = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder), n_images, student.image_size)
        views = Views(
            files,
            image_size=student.image_size,
            preprocess=student.preprocess,
            augmentation="none",
            crop_scale_min=1.0,
            seed=1,
        )
        recipe = BoostRecipe(**plain, loss_weight=1.0)
        console.print(f"boost, {epochs} epochs of {n_images} images, both ways")
        reference, ours = boosters(student, large, names, views, recipe)
        timings.append(compare("boost", reference, ours, recipe, BoostRecipe().epochs))
        labels = [index % n_classes for index in range(n_images)]
        for name in methods:
            console.print(f"{name}, both ways")
            chosen = METHODS[name].recipe.model_validate(plain)
            both = adapters(name, student, names, views, labels, chosen)
            timings.append(compare(name, *both, chosen, METHODS[name].recipe().epochs))
    return timings


def markdown_table(timings: Sequence[Timing]) -> str:
    """The same as docs/performance.md shows it."""
    lines = [
        "| run | reference, s/epoch | ours, first epoch | ours, later | recipe's epochs | ratio | losses differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for timing in timings:
        seconds = " | ".join(f"{value:.2f}" for value in (timing.reference_s, timing.first_s, timing.later_s))
        lines.append(
            f"| {timing.name} | {seconds} | {timing.recipe_epochs} | **{timing.ratio:.1f}** | "
            f"{timing.loss_difference:.0e} |"
        )
    return "\n".join(lines)


def main(
    backbone: Annotated[str, typer.Option(help="open_clip name")] = "ViT-B-16",
    teacher: Annotated[str, typer.Option(help="open_clip name")] = "ViT-L-14",
    n_images: Annotated[int, typer.Option(min=1, help="images of an epoch")] = 16,
    n_classes: Annotated[int, typer.Option(min=2, help="classes of the domain; DTD has 47")] = 47,
    epochs: Annotated[int, typer.Option(min=2, help="epochs of each run, the first of which fills what is reused")] = 2,
    methods: Annotated[str, typer.Option(help="methods beside boosting, separated by commas")] = ",".join(METHODS),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 2,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
    page: Annotated[Path | None, typer.Option(help="page whose table to fill")] = None,
) -> None:
    """Time training against the reference recipe."""
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    timings = measure(
        backbone,
        teacher,
        n_images=n_images,
        n_classes=n_classes,
        epochs=epochs,
        methods=[name for name in methods.split(",") if name],
        console=console,
    )
    Console().print(Markdown(markdown_table(timings)))
    if out is not None:
        asked: dict[str, object] = {"backbone": backbone, "teacher": teacher, "n_images": n_images}
        asked |= {"n_classes": n_classes, "epochs": epochs}
        machine = {"threads": threads, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(asked | machine | {"runs": [asdict(timing) for timing in timings]}, indent=1) + "\n")
    if page is not None:
        fill_page(page, "training-speed", markdown_table(timings))


if __name__ == "__main__":
    typer.run(main)
