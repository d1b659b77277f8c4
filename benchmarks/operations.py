"""What serving and boosting cost in multiplications and additions, counted by torch on real forwards and backwards.

Counts do not depend on the machine; time does. Random weights: the numbers are those of the architecture.

    python -m benchmarks.operations --page docs/performance.md
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markdown import Markdown
from torch.utils.flop_counter import FlopCounterMode

from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.text import encode_tokens
from prompted_clip.vision import encode_image
from training.caspl_student import CasplStudent
from training.demo.pages import fill_page
from training.recipe import BoostRecipe

TEXT_ROWS = 1024
DTD_IMAGES, DTD_CLASSES = 2820, 47
"""Training images and classes of DTD in CoOp's split."""


def operations(work: Callable[[], object]) -> int:
    """Multiplications and additions of some work, backward passes included."""
    is_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused attention of a forward without gradients is not counted
    try:
        with FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fused)
    return int(counter.get_total_flops())


def image_forward(backbone: Backbone) -> int:
    """One image through the plain image tower."""
    side = backbone.image_size
    with torch.no_grad():
        return operations(lambda: encode_image(backbone, torch.zeros(1, 3, side, side)))


def text_forward(backbone: Backbone, n_tokens: int) -> int:
    """One text of so many tokens through the text tower."""
    ids, eot = torch.zeros(1, n_tokens, dtype=torch.long), torch.tensor([n_tokens - 1])
    with torch.no_grad():
        return operations(lambda: encode_tokens(backbone, ids, eot))


def boost_run(student: Backbone, teacher: Backbone, recipe: BoostRecipe, n_images: int, n_classes: int) -> int:
    """A whole run with fresh views: the student learns from and the teacher looks at every image in every epoch."""
    names = [f"class number {index}" for index in range(n_classes)]
    pupil = CasplStudent(student, names, recipe)
    side = student.image_size

    def step(n_rows: int) -> int:
        images = torch.zeros(n_rows, 3, side, side)
        return operations(lambda: torch.autograd.backward(pupil.logits(images).sum()))

    per_image = step(2) - step(1)
    texts = step(1) - per_image
    n_steps = -(-n_images // recipe.batch_size)
    return recipe.epochs * (n_images * (per_image + image_forward(teacher)) + n_steps * texts)


def measure() -> list[tuple[str, str]]:
    """What is counted, and the count."""
    student, teacher = load_backbone("ViT-B-16", random_seed=0), load_backbone("ViT-L-14", random_seed=1)
    image = image_forward(student)
    rows = [
        ("one image, ViT-B-16", f"{image / 1e9:.0f}e9"),
        ("one image, ViT-L-14", f"{image_forward(teacher) / 1e9:.0f}e9"),
    ]
    for n_tokens in (12, 20):
        ratio = TEXT_ROWS * text_forward(student, n_tokens) / image
        rows.append((f"{TEXT_ROWS:,} texts of {n_tokens} tokens, ViT-B-16", f"as {ratio:.0f} images"))
    total = boost_run(student, teacher, BoostRecipe(), DTD_IMAGES, DTD_CLASSES)
    rows.append(("boosting DTD with the default recipe, ViT-B-16 and ViT-L-14", f"{total / 1e15:.0f}e15"))
    return rows


def markdown_table(rows: list[tuple[str, str]]) -> str:
    """The counts as docs/performance.md shows them."""
    return "\n".join(["| what | operations |", "|---|---|", *(f"| {what} | {count} |" for what, count in rows)])


def main(
    page: Annotated[Path | None, typer.Option(help="page whose table to fill")] = None,
) -> None:
    """Count operations of serving and boosting."""
    table = markdown_table(measure())
    Console().print(Markdown(table))
    if page is not None:
        fill_page(page, "operations", table)


if __name__ == "__main__":
    typer.run(main)
