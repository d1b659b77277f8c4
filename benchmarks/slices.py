"""`python -m benchmarks.slices`: the image tower by the width of its MLP's slices and by images in a part.

It chose `MOST_INPUTS` of `prompted_clip.fused_linear` and `PART_BYTES` of `prompted_clip.fused_vision`. Every core runs
parts of its own, as in the service; all ways take turns, in one process.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated
from unittest import mock

import torch
import typer
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.all_cores import AllCores
from benchmarks.machine import foot, versions
from prompted_clip import fused_linear, fused_vision
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.fused_vision import FusedImageTower
from prompted_clip.prompts import join_groups
from training.demo.pages import fill_page

WIDTHS = (10**9, 1536, 1024, 512)
PARTS = (1, 2, 4, 8, 16)
IMAGES_PER_TURN = 16
"""Of every core."""
N_PROMPTS = 12

Ways = dict[tuple[int, int], Callable[[], None]]


def ways(backbone: Backbone, run: Callable[[Callable[[], None]], None]) -> Ways:
    """A turn by width and images in a part.

    Args:
        backbone: on the CPU.
        run: has every core do the same work.
    """
    prompts = torch.zeros(1, N_PROMPTS, backbone.vision_width, dtype=backbone.dtype)
    grid, side = join_groups([prompts]), backbone.image_size
    found: Ways = {}
    for width in WIDTHS:
        with mock.patch.object(fused_linear, "MOST_INPUTS", width):
            tower = FusedImageTower(backbone)
        for n_rows in PARTS:
            pixels = torch.zeros(n_rows, 3, side, side, dtype=torch.uint8)

            def parts(tower: FusedImageTower, pixels: torch.Tensor) -> None:
                for _ in range(IMAGES_PER_TURN // len(pixels)):
                    tower(pixels, grid)

            found[width, n_rows] = partial(run, partial(parts, tower, pixels))
    return found


def markdown_table(images_per_s: Mapping[tuple[int, int], float]) -> str:
    """Images per second, a row for every part size."""
    names = [f"slices of {width:,}" if width < max(WIDTHS) else "whole" for width in WIDTHS]
    head = ["images in a part", *names]
    rows: list[Sequence[object]] = [
        [n_rows, *(f"{images_per_s[width, n_rows]:.1f}" for width in WIDTHS)] for n_rows in PARTS
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main(
    arch: Annotated[str, typer.Option(help="open_clip's name of the backbone; random weights")] = "ViT-B-16",
    budget_s: Annotated[float, typer.Option(min=1, help="seconds for the rounds")] = 200,
    page: Annotated[Path | None, typer.Option(help="page whose table to fill")] = None,
) -> None:
    """Time the bfloat16 image tower with its wide layers cut in several ways."""
    cores, console = AllCores(), Console()

    def run(work: Callable[[], None]) -> None:
        with mock.patch.object(fused_vision, "PART_BYTES", fused_vision.MOST_BYTES):  # a batch is one part
            cores.on_each(work)

    turns = ways(load_backbone(arch, random_seed=0, dtype=torch.bfloat16), run)
    for turn in turns.values():
        turn()
    rates, rounds = cores.images_per_s(
        turns, IMAGES_PER_TURN, budget_s=budget_s, on_round=lambda n: console.print(f"round {n}")
    )
    table, below = markdown_table(rates), foot("python -m benchmarks.slices", versions(("torch",)))
    text = f"{table}\n\n{arch}, images/s, medians of {rounds} rounds. {below}"
    console.print(Markdown(text))
    if page is not None:
        fill_page(page, "slices", text)


if __name__ == "__main__":
    typer.run(main)
