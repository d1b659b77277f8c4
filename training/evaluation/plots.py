"""Plots of a report: accuracy with and without boosting, confusion matrices, losses, and image features in 2D.

The only module that imports matplotlib; no display is required.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.evaluation.metrics import Spread, confusion_matrix
from training.evaluation.projection import lay_out
from training.evaluation.rows import ZERO_SHOT, Results, Row, slug
from training.evaluation.summary import Report, Summary
from training.files import write_atomic

DPI: Final = 110
PLAIN_COLOUR: Final = "#9aa5b1"
BOOSTED_COLOUR: Final = "#2563a8"
MAX_NAMED_CLASSES: Final = 30
MAX_LABEL_CHARS: Final = 24
MAX_FEATURE_PANELS: Final = 6
MAX_COLUMNS: Final = 4
_SMOOTH_STEPS: Final = 20


def draw_report(report: Report, results: Results, folder: Path) -> list[Path]:
    """Draw all plots of a report; plots of single runs use the first seed.

    Args:
        report: the results.
        results: folder with predictions and losses of the rows.
        folder: destination of the PNG files.

    Raises:
        CheckpointError: saved predictions are missing or damaged.
    """
    paths = []
    for dataset in dict.fromkeys(row.dataset for row in report.rows):
        summaries = [each for each in report.summaries if each.dataset == dataset]
        rows = [row for row in report.rows if row.dataset == dataset]
        paths.append(_save(_accuracy(report, summaries), folder / f"{slug(dataset)}-accuracy.png"))
        if losses := _losses(rows, results):
            paths.append(_save(losses, folder / f"{slug(dataset)}-losses.png"))
        for target in dict.fromkeys(row.target for row in rows):
            shown = _first_runs([row for row in rows if row.target == target])
            name = slug(dataset if target == dataset else f"{dataset} to {target}")
            paths.append(_save(_features(shown, results), folder / f"{name}-features.png"))
            for method in dict.fromkeys(row.method for row in shown):
                figure = _confusions([row for row in shown if row.method == method], results)
                paths.append(_save(figure, folder / f"{name}-{slug(method)}-confusion.png"))
    return paths


def draw_confusion(confusion_KK: NDArray[np.int64], names: Sequence[str], title: str, path: Path) -> Path:
    """Draw a row-normalized confusion matrix.

    Args:
        confusion_KK: counts; rows are true classes.
        names: class names.
        title: title of the plot.
        path: PNG file to write.
    """
    figure, (axes,) = _panels(1, width=6.4, height=5.6)
    _confusion(axes, confusion_KK, names, title)
    return _save(figure, path)


def draw_heat_maps(
    panels: Sequence[tuple[str, NDArray[np.float64]]],
    ticks: Sequence[int],
    labels: tuple[str, str],
    path: Path,
) -> Path:
    """Draw square tables of H with one colour scale; NaN leaves a cell empty.

    Args:
        panels: title and values of each table.
        ticks: values of rows and columns.
        labels: of the rows and of the columns.
        path: PNG file to write.
    """
    values = np.concatenate([table.ravel() for _, table in panels])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    figure, all_axes = _panels(len(panels), width=4.2, height=3.8)
    for axes, (title, table) in zip(all_axes, panels, strict=True):
        axes.imshow(table, cmap="Blues", vmin=low - 1, vmax=high + 1)
        axes.set_title(title, fontsize="medium")
        axes.set_ylabel(labels[0])
        axes.set_xlabel(labels[1])
        axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        axes.set_yticks(range(len(ticks)), [str(tick) for tick in ticks])
        for (row, column), value in np.ndenumerate(table):
            if not np.isnan(value):
                colour = "white" if value > (low + high) / 2 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
    return _save(figure, path)


def draw_budgets(
    totals: Sequence[int], alone: Sequence[Spread | None], cascade: Sequence[Spread | None], path: Path
) -> Path:
    """Draw H by total number of prompts: adapting prompts alone, and half of them boosting prompts."""
    figure, (axes,) = _panels(1, width=5.0, height=3.6)
    _bars(axes, alone, -0.2, PLAIN_COLOUR, "adapting prompts alone")
    _bars(axes, cascade, 0.2, BOOSTED_COLOUR, "half boosting prompts")
    axes.set_xticks(range(len(totals)), [str(total) for total in totals])
    axes.set_xlabel("prompts per layer")
    axes.set_ylabel("H, %")
    _explain(figure, axes)
    return _save(figure, path)


def _accuracy(report: Report, summaries: Sequence[Summary]) -> Figure:
    """Bars by method, one panel per measure or target; curves if there are several numbers of shots."""
    if len({each.shots for each in summaries if each.method != ZERO_SHOT}) > 1:
        return _curves(summaries)
    targets = list(dict.fromkeys(each.target for each in summaries))
    panels = [
        (target if len(targets) > 1 else "H" if measure == "h" else measure, measure, target)
        for target in targets
        for measure in report.measures
    ]
    n_methods = len({each.method for each in summaries})
    figure, all_axes = _panels(len(panels), width=1.6 + 0.8 * n_methods, height=3.6)
    for axes, (title, measure, target) in zip(all_axes, panels, strict=True):
        shown = [each for each in summaries if each.target == target]
        axes.set_title(title)
        for offset, colour, label, parts in (
            (-0.2, PLAIN_COLOUR, "without boosting", [each.plain.get(measure) for each in shown]),
            (0.2, BOOSTED_COLOUR, "with boosting", [each.boosted.get(measure) for each in shown]),
        ):
            _bars(axes, parts, offset, colour, label)
        axes.set_xticks(range(len(shown)), [each.method for each in shown], rotation=30, ha="right")
        axes.set_ylim(0, 100)
    all_axes[0].set_ylabel("accuracy, %")
    _explain(figure, all_axes[0])
    return figure


def _bars(axes: Axes, parts: Sequence[Spread | None], offset: float, colour: str, label: str) -> None:
    found = [(x + offset, part) for x, part in enumerate(parts) if part is not None]
    if found:
        axes.bar([x for x, _ in found], [part.mean for _, part in found], 0.38, color=colour, label=label)
    for x, part in found:
        if part.sd is not None:
            axes.errorbar(x, part.mean, yerr=part.sd, color="black", linewidth=1, capsize=3)


def _curves(summaries: Sequence[Summary]) -> Figure:
    figure, (axes,) = _panels(1, width=6.4, height=4.2)
    colour_of = mpl.colormaps["tab10"]
    for number, method in enumerate(dict.fromkeys(each.method for each in summaries)):
        shown = sorted((each for each in summaries if each.method == method), key=lambda each: each.shots)
        colour = colour_of(number % 10)
        for style, suffix, parts in (
            ("--", "", [(each.shots, each.plain.get("accuracy")) for each in shown]),
            ("-", " with boosting", [(each.shots, each.boosted.get("accuracy")) for each in shown]),
        ):
            points = [(x, part.mean, part.sd or 0.0) for x, part in parts if part is not None]
            if points:
                xs, means, sds = zip(*points, strict=True)
                label = method + suffix
                axes.errorbar(xs, means, yerr=sds, color=colour, linestyle=style, marker="o", label=label, capsize=3)
    axes.set_xticks(sorted({each.shots for each in summaries}))
    axes.set_xlabel("training images per class")
    axes.set_ylabel("accuracy, %")
    _explain(figure, axes)
    return figure


def _losses(rows: Sequence[Row], results: Results) -> Figure | None:
    """Smoothed loss per step, one panel per method; None without training."""
    runs = {row.training: row for row in rows if row.training is not None and results.losses(row)}
    shown = _first_runs(list(runs.values()))
    methods = list(dict.fromkeys(row.method for row in shown))
    if not methods:
        return None
    figure, all_axes = _panels(len(methods), width=4.0, height=3.2)
    for axes, method in zip(all_axes, methods, strict=True):
        axes.set_title(method)
        axes.set_xlabel("step")
        for row in shown:
            if row.method == method:
                losses = np.asarray(results.losses(row))
                window = np.ones(min(_SMOOTH_STEPS, 1 + len(losses) // 10))
                smooth = np.convolve(losses, window / len(window), mode="valid")
                label, colour = ("with boosting", BOOSTED_COLOUR) if row.boosted else ("without boosting", PLAIN_COLOUR)
                axes.plot(np.arange(len(smooth)) + len(window), smooth, color=colour, label=label)
    all_axes[0].set_ylabel("training loss")
    _explain(figure, all_axes[0])
    return figure


def _features(rows: Sequence[Row], results: Results) -> Figure:
    """2D projection of the test images' features, coloured by class: plain, boosted and adapted."""
    starts = [row for row in rows if row.method == ZERO_SHOT]
    adapted = sorted((row for row in rows if row.method != ZERO_SHOT), key=lambda row: not row.boosted)
    methods = {row.method: row for row in reversed(adapted)}  # boosted overrides plain
    shown = [*starts, *reversed(methods.values())]
    saved = [(row, results.predictions(row)) for row in shown]
    saved = [(row, predictions) for row, predictions in saved if len(predictions.features_ME)][:MAX_FEATURE_PANELS]
    figure, all_axes = _panels(max(1, len(saved)), width=3.6, height=3.6)
    for axes, (row, predictions) in zip(all_axes, saved, strict=False):
        layout = lay_out(predictions.features_ME)
        x_M, y_M = layout.points_N2.T
        axes.set_xlabel(layout.method, fontsize="small")
        axes.scatter(x_M, y_M, c=predictions.feature_labels_M % 20, cmap="tab20", vmin=0, vmax=19, s=9)
        axes.set_title(_run_title(row), fontsize="medium")
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def _confusions(rows: Sequence[Row], results: Results) -> Figure:
    figure, all_axes = _panels(len(rows), width=5.6, height=5.2)
    for axes, row in zip(all_axes, rows, strict=True):
        predictions = results.predictions(row)
        counts_KK = confusion_matrix(predictions.labels_N, predictions.named_N, len(predictions.class_names))
        _confusion(axes, counts_KK, predictions.class_names, _run_title(row))
    return figure


def _confusion(axes: Axes, counts_KK: NDArray[np.int64], names: Sequence[str], title: str) -> None:
    totals_K1 = counts_KK.sum(axis=1, keepdims=True)
    shares_KK = counts_KK / np.maximum(totals_K1, 1)
    axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(names) <= MAX_NAMED_CLASSES:
        labels = [_label(name) for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=90, fontsize="x-small")
        axes.set_yticks(range(len(names)), labels, fontsize="x-small")


def _first_runs(rows: Sequence[Row]) -> list[Row]:
    """One row per method, with and without boosting: the first seed, the most shots."""
    best: dict[tuple[str, bool], Row] = {}
    for row in sorted(rows, key=lambda row: (-row.shots, row.seed or 0)):
        best.setdefault((row.method, row.boosted), row)
    return [best[key] for key in dict.fromkeys((row.method, row.boosted) for row in rows)]


def _run_title(row: Row) -> str:
    return f"{row.method}, {'with' if row.boosted else 'without'} boosting"


def _panels(n_panels: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A grid of panels; width and height of one panel in inches."""
    n_columns = min(n_panels, MAX_COLUMNS)
    n_rows = -(-n_panels // n_columns)
    figure = Figure(figsize=(max(3.6, n_columns * width), n_rows * height), dpi=DPI, layout="constrained")
    all_axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for unused in all_axes[n_panels:]:
        unused.set_axis_off()
    return figure, all_axes[:n_panels]


def _explain(figure: Figure, axes: Axes) -> None:
    """Add a legend above all panels, if there are labels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, fontsize="small", loc="outside upper center", ncols=min(4, len(handles)))


def _label(name: str) -> str:
    """An axis label: truncated, with `$` escaped."""
    short = name if len(name) <= MAX_LABEL_CHARS else f"{name[: MAX_LABEL_CHARS - 1]}…"
    return short.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())
    return path
