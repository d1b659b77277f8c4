"""The tables of boosting from one teacher or two, as Markdown."""

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from training.demo.shifts import SHIFTED
from training.demo.teacher_runs import ARMS

Row = Mapping[str, Any]
_LABELS = [arm.label for arm in ARMS]


def complete_seeds(rows: Sequence[Row]) -> list[int]:
    """Seeds with a run of every arm in every domain."""
    found = {(row["seed"], row["domain"], row["model"]) for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    return [seed for seed in seeds if all((seed, domain, label) in found for domain in SHIFTED for label in _LABELS)]


def targets_table(references: Sequence[Row]) -> str:
    """H of the student, the second teacher and each arm's targets, without training."""
    columns = ["student", _LABELS[0], "second teacher", *_LABELS[1:]]
    h = {(row["domain"], row["model"]): row["h"] for row in references}
    lines = [_line("domain", columns), "|---" * (len(columns) + 1) + "|"]
    lines += [_line(domain, [f"{h[domain, name]:.1f}" for name in columns]) for domain in SHIFTED]
    means = [f"**{fmean(h[domain, name] for domain in SHIFTED):.1f}**" for name in columns]
    return "\n".join([*lines, _line("mean", means)])


def gaps_table(references: Sequence[Row], rows: Sequence[Row]) -> str:
    """Share of the gap in H between student and first teacher that boosting closes, in per cent.

    Domains have the mean over the complete seeds. The last line is the mean over domains of the difference from the
    first teacher's share, with its standard error over domains.
    """
    seeds = complete_seeds(rows)
    h = {(row["domain"], row["model"]): row["h"] for row in references}
    closed: dict[tuple[str, str], float] = {}
    for domain, label in itertools.product(SHIFTED, _LABELS):
        runs = [row["h"] for row in rows if (row["domain"], row["model"]) == (domain, label) and row["seed"] in seeds]
        student, teacher = h[domain, "student"], h[domain, _LABELS[0]]
        closed[domain, label] = 100 * (fmean(runs) - student) / (teacher - student)
    lines = [_line("domain", _LABELS), "|---" * (len(_LABELS) + 1) + "|"]
    lines += [_line(domain, [f"{closed[domain, label]:.1f}" for label in _LABELS]) for domain in SHIFTED]
    lines.append(_line("mean", [f"**{fmean(closed[domain, label] for domain in SHIFTED):.1f}**" for label in _LABELS]))
    gains = []
    for label in _LABELS[1:]:
        found = [closed[domain, label] - closed[domain, _LABELS[0]] for domain in SHIFTED]
        gains.append(f"{fmean(found):+.1f} ± {stdev(found) / math.sqrt(len(found)):.1f}")
    return "\n".join([*lines, _line("difference", ["", *gains])])


def _line(first: str, cells: Sequence[str]) -> str:
    return f"| {first} | {' | '.join(cells)} |"
