"""The image tower's steps as they are served, in Python, and compiled by `torch.compile`: images/s, seconds to start.

It is why the service does not compile (docs/decisions/0007). Every core runs batches of its own, of one size: of more
sizes each would be compiled, or one form that fits all. Needs a compiler for C++.

    python -m benchmarks.compiled --page docs/performance.md
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor, nn

from benchmarks.all_cores import AllCores
from benchmarks.machine import foot, versions
from prompted_clip import internals
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.fused_linear import Linears
from prompted_clip.fused_vision import FusedImageTower, ImageSteps
from prompted_clip.precision import fastest_dtype, fastest_linears
from prompted_clip.prompts import PromptGrid, join_groups
from training.demo.pages import fill_page

N_ROWS = 4
"""Images of a batch."""
N_PROMPTS, DEPTH = 12, 9
SERVED = "as served"
FROZEN = {"freezing": True, "cpp.threads": 1, "force_disable_caches": True}
"""Weights are constants, which inductor packs for oneDNN; the code keeps to its core and is not an earlier run's."""

Way = Callable[[], Tensor]


def served(backbone: Backbone, pixels: Tensor, grid: PromptGrid | None) -> Way:
    """As the service has it: without the interpreter between steps."""
    linears = fastest_linears(backbone.arch, backbone.device, backbone.dtype)
    return partial(FusedImageTower(backbone, linears), pixels, grid)


def stepwise(
    backbone: Backbone,
    pixels: Tensor,
    grid: PromptGrid | None,
    *,
    linears: Linears,
    options: Mapping[str, Any] | None = None,
) -> Way:
    """The same steps, compiled by inductor with options; in Python without."""
    with torch.no_grad():
        module = ImageSteps(internals.vision_weights(backbone.clip), backbone, linears)
    steps: Callable[..., Tensor] = module
    if options is not None:
        steps = torch.compile(with_buffers(module), fullgraph=True, dynamic=False, options=dict(options))
    prompts = (None, None, 0, 0) if grid is None else (grid.tokens, grid.depths, grid.min_depth, grid.max_depth)

    def way() -> Tensor:
        with torch.no_grad():
            return steps(pixels, *prompts)

    return way


def with_buffers(module: nn.Module) -> nn.Module:
    """The module with its tensors as buffers: only those are constants for inductor."""
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                delattr(part, name)
                part.register_buffer(name, value)
    return module


def ways(backbone: Backbone) -> dict[str, Callable[[], Way]]:
    """How to make each way.

    Args:
        backbone: on the CPU, in the type it is served in.
    """
    depth = min(DEPTH, backbone.n_vision_layers)
    grid = join_groups([torch.zeros(depth, N_PROMPTS, backbone.vision_width, dtype=backbone.dtype)])
    side = backbone.image_size
    pixels = torch.randint(0, 256, (N_ROWS, 3, side, side), dtype=torch.uint8)
    packed = Linears.usual(backbone.device, backbone.dtype)
    plain = Linears(backbone.dtype, is_packed=False)  # inductor packs by itself, and does not take what is packed
    by_trial = FROZEN | {"max_autotune": True}
    return {
        SERVED: partial(served, backbone, pixels, grid),
        "the same steps in Python": partial(stepwise, backbone, pixels, grid, linears=packed),
        "compiled": partial(stepwise, backbone, pixels, grid, linears=plain, options=FROZEN),
        "compiled, products chosen by trial": partial(
            stepwise, backbone, pixels, grid, linears=plain, options=by_trial
        ),
    }


def markdown_table(images_per_s: Mapping[str, float], starts_s: Mapping[str, float]) -> str:
    """Images per second and seconds until the first answer, a row for every way."""
    rows: list[Sequence[str]] = [("forward", "images/s", "of what is served", "first answer after, s"), ("---",) * 4]
    rows += [
        (name, f"{per_s:.2f}", f"{per_s / images_per_s[SERVED]:.2f}", f"{starts_s[name]:.1f}")
        for name, per_s in images_per_s.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(
    arch: Annotated[str, typer.Option(help="open_clip's name of the backbone; random weights")] = "ViT-B-16",
    budget_s: Annotated[float, typer.Option(min=1, help="seconds for the rounds")] = 60,
    page: Annotated[Path | None, typer.Option(help="page whose table to fill")] = None,
) -> None:
    """Time the image tower's steps as they are served and compiled."""
    cores, console = AllCores(), Console()
    backbone = load_backbone(arch, random_seed=0, dtype=fastest_dtype(arch, "cpu"))
    turns: dict[str, Callable[[], None]] = {}
    starts_s: dict[str, float] = {}

    for name, make in ways(backbone).items():
        began_s = time.perf_counter()
        way = cores.on_one(make)
        cores.on_one(way)
        starts_s[name] = time.perf_counter() - began_s
        console.print(f"{name}: first answer after {starts_s[name]:.1f} s")
        turns[name] = partial(cores.on_each, way)
        turns[name]()
    rates, rounds = cores.images_per_s(turns, N_ROWS, budget_s=budget_s, on_round=lambda n: console.print(f"round {n}"))
    table = markdown_table(rates, starts_s)
    dtype = str(backbone.dtype).removeprefix("torch.")
    below = foot("python -m benchmarks.compiled", versions(("torch",)))
    text = (
        f"{table}\n\n{arch}, {dtype}, {N_PROMPTS} prompt tokens, {cores.n} cores at {N_ROWS} images each, medians of "
        f"{rounds} rounds. {below}"
    )
    console.print(Markdown(text))
    if page is not None:
        fill_page(page, "compiled", text)


if __name__ == "__main__":
    typer.run(main)
