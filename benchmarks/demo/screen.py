"""The tables and hints that the demo prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.demo.accuracy import TOP_K, LabelledImage, Measured
from caspl import Prediction


@dataclass(frozen=True)
class Step:
    """A row of the accuracy table: how the model was trained, and the results per domain."""

    name: str
    training: str
    results: Sequence[Measured]


def show_accuracy(console: Console, steps: Sequence[Step], *, n_images: int, n_classes: int) -> None:
    """Print the accuracy of each step per domain, and the seconds that classification took."""
    title = f"Accuracy over HTTP: {n_images} test images per domain, {n_classes} classes (chance {1 / n_classes:.2%})"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("model", no_wrap=True)
    for result in steps[0].results:
        table.add_column(result.domain, justify="right")
    table.add_column("training")
    table.add_column("classified in", justify="right")
    for step in steps:
        cells = [f"{result.accuracy:.1%}" for result in step.results]
        took_s = sum(result.took_s for result in step.results)
        table.add_row(step.name, *cells, step.training, f"{took_s:.1f} s")
    console.print(table)
    widest = max(math.sqrt(one.accuracy * (1 - one.accuracy) / n_images) for step in steps for one in step.results)
    console.print(f"Standard error of each number: at most {100 * widest:.1f} points.\n")


def show_first_images(console: Console, steps: Sequence[Step], images: Mapping[str, LabelledImage]) -> None:
    """Print the predictions for the first test image of each domain; correct ones are marked."""
    table = Table(
        title="The first test image of each domain", title_justify="left", title_style="bold", show_lines=False
    )
    for column in ("image", "model", "first", "second", "third"):
        table.add_column(column, no_wrap=True)
    for place, (domain, image) in enumerate(images.items()):
        for number, step in enumerate(steps):
            cells = [_cell(one, image) for one in step.results[place].predictions[0]]
            cells += [Text("")] * (TOP_K - len(cells))
            name = Text(f"{domain}: {image.true_class}" if number == 0 else "")
            table.add_row(name, step.name, *cells, end_section=number == len(steps) - 1)
    console.print(table)


def show_next_commands(console: Console) -> None:
    """Print how to start the service for good, and the next command."""
    console.print("Start the service, then open the web page http://localhost:8000/ :")
    console.print("  .venv/bin/caspl serve --demo", style="bold")
    console.print("Then teach it a domain of your own, from a folder of pictures per class (docs/tutorial.md):")
    console.print("  .venv/bin/caspl teach --help", style="bold")


def _cell(prediction: Prediction, image: LabelledImage) -> Text:
    is_right = prediction.label == image.true_class
    text = f"{prediction.label} {prediction.probability:.0%}{' ✓' if is_right else ''}"
    return Text(text, style="green" if is_right else "")
