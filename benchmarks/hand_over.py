"""`python -m benchmarks.hand_over`: forwards beside a thread that never rests, by how soon it has to hand over.

An event loop with its hands full, with refusals say, holds Python's lock all the time; a forward in Python wants it
back after each of its steps, one in TorchScript at its ends. This chose `HAND_OVER_S` of `service.interpreter` and
`prompted_clip.scripted`. All ways take turns, in one process.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from prompted_clip import fused_vision
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.fused_vision import FusedImageTower
from training.demo.pages import fill_page

INTERVALS_S = (5e-3, 1e-3, 1e-4, 2e-5, 5e-6)
"""Python's own first."""
ALONE = "alone"
N_ROWS = 4


@contextmanager
def busy_thread() -> Iterator[None]:
    """A thread that computes in Python and does nothing else."""
    is_over = threading.Event()

    def never_rest() -> None:
        while not is_over.is_set():
            sum(range(50))

    thread = threading.Thread(target=never_rest)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def in_python(backbone: Backbone) -> FusedImageTower:
    """The served tower with every step the interpreter's."""
    with mock.patch.object(fused_vision, "scripted", lambda module, *_: module):
        return FusedImageTower(backbone)


def markdown_table(images_per_s: Mapping[tuple[str, str], float]) -> str:
    """Images per second by way and by form of the forward, which are the keys."""
    forms = list(dict.fromkeys(form for _, form in images_per_s))
    lines = [["hands over after", *forms], ["---"] * (1 + len(forms))]
    names = dict.fromkeys(way for way, _ in images_per_s)
    lines += [[way, *(f"{images_per_s[way, form]:.1f}" for form in forms)] for way in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ways(run: Callable[[], None]) -> dict[str, Callable[[], None]]:
    """The same work alone, and beside the busy thread at every interval."""

    def beside(interval_s: float) -> None:
        before_s = sys.getswitchinterval()
        sys.setswitchinterval(interval_s)
        try:
            with busy_thread():
                run()
        finally:
            sys.setswitchinterval(before_s)

    return {ALONE: run, **{f"{interval_s * 1000:g} ms": partial(beside, interval_s) for interval_s in INTERVALS_S}}


def main(
    arch: Annotated[str, typer.Option(help="open_clip's name of the backbone; random weights")] = "ViT-B-16",
    budget_s: Annotated[float, typer.Option(min=1, help="seconds for the rounds")] = 100,
    page: Annotated[Path | None, typer.Option(help="page whose table to fill")] = None,
) -> None:
    """Time the bfloat16 image tower beside a thread that never rests."""
    cores, console = AllCores(), Console()
    backbone = load_backbone(arch, random_seed=0, dtype=torch.bfloat16)
    pixels = torch.zeros(N_ROWS, 3, backbone.image_size, backbone.image_size, dtype=torch.uint8)

    def run(tower: FusedImageTower) -> None:
        cores.on_each(partial(tower, pixels))

    towers = {"steps in Python": in_python(backbone), "in TorchScript, as served": FusedImageTower(backbone)}
    turns = {(way, form): turn for form, tower in towers.items() for way, turn in ways(partial(run, tower)).items()}
    for tower in towers.values():
        run(tower)
    rates, rounds = cores.images_per_s(turns, N_ROWS, budget_s=budget_s, on_round=lambda n: console.print(f"round {n}"))
    table, below = markdown_table(rates), foot("python -m benchmarks.hand_over", versions(("torch",)))
    text = f"{table}\n\n{arch}, {cores.n} cores at {N_ROWS} images each, medians of {rounds} rounds. {below}"
    console.print(Markdown(text))
    if page is not None:
        fill_page(page, "hand-over", text)


if __name__ == "__main__":
    typer.run(main)
