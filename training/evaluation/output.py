"""Writes `report.json`, `report.md` and, if matplotlib is installed, plots."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from training.evaluation import one_bundle, report
from training.evaluation.one_bundle import BundleResult
from training.evaluation.rows import Results
from training.evaluation.summary import Report
from training.files import write_atomic

JSON_NAME: Final = "report.json"
MARKDOWN_NAME: Final = "report.md"


def write_report(measured: Report, results: Results, folder: Path, console: Console) -> dict[str, Any]:
    """Write a report, replacing an existing one.

    Returns:
        The JSON object that was written.
    """

    def draw() -> list[Path]:
        from training.evaluation.plots import draw_report  # noqa: PLC0415  matplotlib is optional, and slow to import

        return draw_report(measured, results, folder)

    pictures = draw_if_possible(draw, console)
    content = report.to_json(measured) | {"pictures": pictures}
    _write(folder, content, report.to_markdown(measured, pictures), console)
    return content


def write_bundle_report(measured: BundleResult, folder: Path, console: Console) -> dict[str, Any]:
    """Write the report of one bundle or of the plain backbone, replacing an existing one.

    Returns:
        The JSON object that was written.
    """

    def draw() -> list[Path]:
        from training.evaluation.plots import draw_confusion  # noqa: PLC0415  likewise

        names = [each.name for each in measured.classes]
        return [draw_confusion(measured.confusion_KK, names, measured.title, folder / "confusion.png")]

    pictures = draw_if_possible(draw, console)
    content = one_bundle.to_json(measured) | {"pictures": pictures}
    _write(folder, content, one_bundle.to_markdown(measured, pictures), console)
    return content


def draw_if_possible(draw: Callable[[], list[Path]], console: Console) -> list[str]:
    """Draw the plots and return their file names; without matplotlib print a hint and return none."""
    try:
        return [path.name for path in draw()]
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        console.print("no plots: matplotlib is not installed (pip install matplotlib)", markup=False)
        return []


def _write(folder: Path, content: dict[str, Any], markdown: str, console: Console) -> None:
    write_atomic(folder / JSON_NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(folder / MARKDOWN_NAME, markdown.encode())
    console.print(f"wrote {folder / MARKDOWN_NAME} and {JSON_NAME}", markup=False, soft_wrap=True)
