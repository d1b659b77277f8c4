"""Tables of few-shot heads in the demo domains, in Markdown, from the rows of `fit_domains.py`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from prompted_clip.fit_report import AUTO
from training.demo.adapt_domains import table_line
from training.demo.fit_domains import AUTO_UNLABELLED, CHECKS, METHODS, SHOTS
from training.evaluation.metrics import spread
from training.evaluation.rows import ZERO_SHOT

ADAPT_LINES: Final = (
    *(("`caspl fit`", AUTO, shots) for shots in (4, 8, 16)),
    *(("`caspl fit --method ridge`", "ridge", shots) for shots in (4, 8, 16)),
    *(("`caspl fit --unlabelled`", AUTO_UNLABELLED, shots) for shots in (1, 2, 4)),
)
"""Lines in README's table: label, method, shots."""

Row = Mapping[str, Any]


def markdown_table(rows: Sequence[Row]) -> str:
    """Base accuracy by method and shots, mean over domains and seeds; then H and all classes with the most shots."""
    header = [*(f"{shots}" for shots in SHOTS), f"H, {max(SHOTS)}", f"all 80 classes, {max(SHOTS)}"]
    lines = [f"| images per class | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    cells = [_mean(rows, ZERO_SHOT, 0, measure) for measure in (*["base"] * len(SHOTS), "h", "all")]
    lines.append(f"| text features | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    for method in METHODS:
        if method != AUTO_UNLABELLED:
            cells = [_mean(rows, method, shots, "base") for shots in SHOTS]
            cells += [_mean(rows, method, max(SHOTS), measure) for measure in ("h", "all")]
            lines.append(f"| `{method}` | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def unlabelled_table(rows: Sequence[Row]) -> str:
    """Base accuracy of `auto` by shots, without and with unlabelled images, of the plain and the boosted student."""
    lines = [f"| images per class | {' | '.join(f'{shots}' for shots in SHOTS)} |", "|---" * (len(SHOTS) + 1) + "|"]
    names = {ZERO_SHOT: "text features", AUTO: "`auto`", AUTO_UNLABELLED: "`auto` with `--unlabelled`"}
    for boosted in (False, True):
        for method, name in names.items():
            all_shots = [0] * len(SHOTS) if method == ZERO_SHOT else SHOTS
            cells = [_mean(rows, method, shots, "base", boosted=boosted) for shots in all_shots]
            student = "boosted" if boosted else "plain"
            lines.append(f"| {student} student, {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def adapt_lines(rows: Sequence[Row]) -> str:
    """`ADAPT_LINES`, as in the table of adapting methods."""
    return "\n".join(
        table_line([row for row in rows if row["shots"] == shots], method, f"{label}, {shots} image{'s' * (shots > 1)}")
        for label, method, shots in ADAPT_LINES
    )


def checks_table(checks: Sequence[Row]) -> str:
    """`CHECKS` by domain, mean over seeds, and over all domains."""
    names = ["changed labels found", "correct labels suspected"]
    names += [f"abstained, {100 * float(name.split('_')[1]):g} %" for name in CHECKS[2:]]
    lines = [f"| domain | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for domain in [*dict.fromkeys(row["domain"] for row in checks), "mean"]:
        own = [row for row in checks if domain in {row["domain"], "mean"}]
        means = [spread([row[check] for row in own]).mean for check in CHECKS]
        lines.append(f"| {domain} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join(lines)


def _mean(rows: Sequence[Row], method: str, shots: int, measure: str, *, boosted: bool = True) -> float:
    own = [row for row in rows if (row["method"], row["shots"], row["boosted"]) == (method, shots, boosted)]
    return spread([row[measure] for row in own]).mean
