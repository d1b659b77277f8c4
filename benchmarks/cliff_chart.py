"""The chart of `caspl bench cliff`: throughput and p99 latency over the size of the working set."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import Report

COLOURS = ("#0b6e99", "#b5442c", "#3f7d3a", "#7a5195")
STYLES = ("-", "--", ":", "-.")


def draw(report: Report, folder: Path) -> Path:
    """Write `<name>.svg`; returns its path."""
    points: list[dict[str, Any]] = report.samples["points"]
    slots = int(report.settings["slots"])
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, points, lambda point: statistics.median(point["per_s"]), "images/s")
    _curves(right, points, lambda point: float(np.percentile(point["latencies_ms"], 99)), "p99 latency, ms")
    over = sorted({point["over"] for point in points})
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(over, [f"{one * slots}\n{one} x" for one in over])
        axes.minorticks_off()
        axes.set_xlabel(f"domains in use, with {slots} slots in the prompt bank")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    cold = report.numbers["cold_added_ms"]["value"]
    figure.suptitle(
        f"{report.settings['backbone']}, {report.settings['dtype']}, {report.settings['clients']} clients; "
        f"a cold domain adds {cold:.1f} ms",
        fontsize="medium",
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.name}.svg"
    with mpl.rc_context({"svg.hashsalt": report.name, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
    return path


def _curves(axes: Axes, points: list[dict[str, Any]], value: Callable[[dict[str, Any]], float], label: str) -> None:
    """One line per popularity and rate of updates."""
    alphas, rates = (sorted({point[name] for point in points}) for name in ("alpha", "updates_per_s"))
    for number, alpha in enumerate(alphas):
        for style, per_s in zip(STYLES, rates, strict=False):
            chosen = [one for one in points if (one["alpha"], one["updates_per_s"]) == (alpha, per_s)]
            chosen.sort(key=lambda point: point["over"])
            axes.plot(
                [point["over"] for point in chosen],
                [value(point) for point in chosen],
                style,
                marker="o",
                color=COLOURS[number % len(COLOURS)],
                label=f"{'uniform' if not alpha else f'Zipf {alpha:g}'}, {per_s:g} updates/s",
            )
    axes.set_ylabel(label)
