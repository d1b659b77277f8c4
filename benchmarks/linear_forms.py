"""The float32 image tower with its linear layers packed and in plain steps, beside open_clip's own forward.

It is why `prompted_clip/precision.py` times both at start. Every core runs batches of its own.

    python -m benchmarks.linear_forms --page docs/performance.md
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.all_cores import AllCores
from benchmarks.machine import foot, versions
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.fused_linear import Linears
from prompted_clip.fused_vision import FusedImageTower
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.prompts import join_groups
from training.demo.pages import fill_page

N_ROWS = 4
"""Images of a batch."""
N_PROMPTS, DEPTH = 12, 9
OPEN_CLIP = "open_clip's forward, without prompts"


def ways(backbone: Backbone) -> dict[str, Callable[[], object]]:
    """A batch in every form.

    Args:
        backbone: in float32, on the CPU.
    """
    depth = min(DEPTH, backbone.n_vision_layers)
    grid = join_groups([torch.zeros(depth, N_PROMPTS, backbone.vision_width)])
    pixels = torch.zeros(N_ROWS, 3, backbone.image_size, backbone.image_size, dtype=torch.uint8)
    images = normalize_pixels(pixels, backbone.preprocess)

    def library() -> object:
        with torch.inference_mode():
            return backbone.clip.encode_image(images)

    forms = {"packed": True, "plain steps": False}
    towers = {name: FusedImageTower(backbone, Linears(torch.float32, is_packed)) for name, is_packed in forms.items()}
    return {name: partial(tower, pixels, grid) for name, tower in towers.items()} | {OPEN_CLIP: library}


def markdown_table(images_per_s: Mapping[str, float]) -> str:
    """Images per second, a row for every way."""
    rows: list[Sequence[str]] = [("forward", "images/s"), ("---", "---")]
    rows += [(name, f"{per_s:.2f}") for name, per_s in images_per_s.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(
    arch: Annotated[str, typer.Option(help="open_clip's name of the backbone; random weights")] = "ViT-B-16",
    budget_s: Annotated[float, typer.Option(min=1, help="seconds for the rounds")] = 60,
    page: Annotated[Path | None, typer.Option(help="page whose table to fill")] = None,
) -> None:
    """Time the float32 image tower in both forms."""
    cores, console = AllCores(), Console()
    turns = {name: partial(cores.on_each, work) for name, work in ways(load_backbone(arch, random_seed=0)).items()}
    for turn in turns.values():
        turn()
    rates, rounds = cores.images_per_s(turns, N_ROWS, budget_s=budget_s, on_round=lambda n: console.print(f"round {n}"))
    table, below = markdown_table(rates), foot("python -m benchmarks.linear_forms", versions(("torch",)))
    text = f"{table}\n\n{arch}, float32, {cores.n} cores at {N_ROWS} images each, medians of {rounds} rounds. {below}"
    console.print(Markdown(text))
    if page is not None:
        fill_page(page, "linear-forms", text)


if __name__ == "__main__":
    typer.run(main)
