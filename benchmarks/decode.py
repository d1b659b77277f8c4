"""How fast one thread turns JPEG files into a backbone's pixels, in every way that is installed.

All ways take turns on the same file; a ratio compares two turns of the same round. Time is the processor's, so that
what else the machine does counts little. `--differences` measures what the way `fast` changes instead: pixels, logits
and answers.

    python -m benchmarks.decode --out build/bench --page docs/images.md
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.decode_differences import differences
from benchmarks.decode_ways import CLIP, REFERENCE, SIZES, Way, as_jpeg, mosaic, ways
from benchmarks.interleaved import Ratio, in_turn, ratio
from benchmarks.machine import versions
from benchmarks.report import Measured, Plot, Report, Table

PACKAGES = ("caspl-serve", "pillow", "simplejpeg", "torch", "torchvision", "opencv-python-headless", "open_clip_torch")
SERVICE_WAYS = ("service, exact", "service, fast")
TURN_S = 0.02


@dataclass(frozen=True)
class DecodeOptions:
    """What `measure` is asked for.

    Attributes:
        side: of the backbone's input, in pixels.
        budget_s: processor seconds for the turns on each file.
        sizes: width and height of the files' pictures, in pixels.
    """

    side: int = 224
    budget_s: float = 15.0
    sizes: Sequence[tuple[int, int]] = SIZES


@dataclass(frozen=True)
class Row:
    """One way on one file.

    Attributes:
        size: width and height of the picture, in pixels.
        n_bytes: of the file.
        way: how it was decoded.
        taken_s: processor time of one image, in every turn.
        gain: how many times as many images per second as the reference way.
        mean_difference: from the reference way's pixels, in grey levels.
        max_difference: likewise.
    """

    size: tuple[int, int]
    n_bytes: int
    way: str
    taken_s: list[float]
    gain: Ratio
    mean_difference: float
    max_difference: int

    @property
    def per_s(self) -> float:
        """Images per second of one thread: of the median turn."""
        return 1 / statistics.median(self.taken_s)


def rows(options: DecodeOptions, console: Console) -> list[Row]:
    """Time every way on every file, in one thread.

    Raises:
        BenchError: scikit-image, whose photographs these are, is not installed.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for size in options.sizes for row in _rows_of(size, options, console)]
    finally:
        torch.set_num_threads(n_threads)


def measure(options: DecodeOptions, console: Console) -> Report:
    """Rates and ratios of all ways.

    Raises:
        BenchError: scikit-image, whose photographs these are, is not installed.
    """
    found = rows(options, console)
    report = Report("decode", {"side": options.side, "budget_s": options.budget_s}, versions=versions(PACKAGES))
    for size in options.sizes:
        of_size = [row for row in found if row.size == size]
        title = f"{size[0]} x {size[1]} pixels, {of_size[0].n_bytes / 1000:,.0f} kB"
        report.tables[title] = table(of_size)
        report.plots[title] = Plot(
            "images/s of one thread", "", {"": ([r.way for r in of_size], [r.per_s for r in of_size])}
        )
        for row in of_size:
            if row.way in SERVICE_WAYS:
                name = f"{row.way.split()[-1]}_{size[0]}x{size[1]}_vs_open_clip_steps"
                report.numbers.append(Measured(name, row.gain, f"{row.way}, over {REFERENCE}: images/s of one thread"))
    report.notes.append(
        "One thread, by its processor time; every way in turn on the same file (4:2:0, quality 90, scikit-image's "
        "photographs side by side). The service's ways include reading the header and checking the limits, the others "
        "do not."
    )
    return report


def table(found: Sequence[Row]) -> Table:
    """The rows of one size as pages show them."""
    cells = [
        (
            row.way,
            f"{row.per_s:,.0f}",
            f"**{row.gain.value:.2f}** ({row.gain.low:.2f} .. {row.gain.high:.2f})",
            f"{row.mean_difference:.3f}",
            row.max_difference,
        )
        for row in found
    ]
    return Table(("way", "images/s", "ratio (quartiles)", "mean difference", "most"), cells)


def _rows_of(size: tuple[int, int], options: DecodeOptions, console: Console) -> list[Row]:
    data = as_jpeg(mosaic(size))
    by_name = ways(options.side, CLIP)
    pixels = {name: way(data).astype(np.int16) for name, way in by_name.items()}
    apart = {name: np.abs(found - pixels[REFERENCE]) for name, found in pixels.items()}
    console.print(f"{size[0]} x {size[1]}: {len(by_name)} ways in turn")
    n_images = repeats(by_name[REFERENCE], data)
    turns = {name: partial(_again, way, data, n_images) for name, way in by_name.items()}
    taken = {
        name: [one_s / n_images for one_s in taken_s]
        for name, taken_s in in_turn(turns, budget_s=options.budget_s, clock=time.process_time).items()
    }
    return [
        Row(
            size,
            len(data),
            name,
            taken_s,
            ratio(taken[REFERENCE], taken_s),
            float(apart[name].mean()),
            int(apart[name].max()),
        )
        for name, taken_s in taken.items()
    ]


def repeats(way: Way, data: bytes) -> int:
    """How many images make a turn of `TURN_S`; a single small one would pay for what the way before it left cold."""
    started_s = time.process_time()
    way(data)
    return max(1, round(TURN_S / max(1e-4, time.process_time() - started_s)))


def _again(way: Way, data: bytes, n_images: int) -> None:
    for _ in range(n_images):
        way(data)


def main(
    side: Annotated[int, typer.Option(min=1, help="of the backbone's input, in pixels")] = 224,
    budget_s: Annotated[float, typer.Option(min=0, help="processor seconds for each file")] = 15.0,
    fast: Annotated[bool, typer.Option("--differences", help="measure what `fast` changes instead of speed")] = False,
    out: Annotated[Path, typer.Option(help="folder for the JSON, Markdown and PNG files")] = Path("build/bench"),
    page: Annotated[Path | None, typer.Option(help="page whose table to fill")] = None,
) -> None:
    """Time decoding, or measure what decoding faster changes."""
    console = Console(stderr=True)
    report = differences(console) if fast else measure(DecodeOptions(side, budget_s), console)
    report.command = "python -m benchmarks.decode" + (" --differences" if fast else "")
    Console().print(Markdown(report.markdown()))
    for line in report.write(out, page):
        console.print(line)


if __name__ == "__main__":
    typer.run(main)
