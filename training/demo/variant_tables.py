"""The tables of boosting variants and limits, as Markdown."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from training.evaluation.metrics import Spread, spread

Row = Mapping[str, Any]


def variants_table(references: Sequence[Row], rows: Sequence[Row]) -> str:
    """All variants in the first domain with the first seed; then those that were repeated, in every domain.

    The second table has means over seeds. ± is the standard deviation, of differences between runs with the same seed.
    """
    domain, seed = rows[0]["domain"], rows[0]["seed"]
    screened = [row for row in rows if (row["domain"], row["seed"]) == (domain, seed)]
    lines = [f"| recipe | {domain}, seed {seed} | difference |", "|---|---|---|"]
    for row in screened:
        shown = f"{row['accuracy'] - rows[0]['accuracy']:+.1f}" if row is not rows[0] else ""
        lines.append(f"| {row['variant']} | {row['accuracy']:.1f} | {shown} |")
    others = [row["variant"] for row in rows if (row["domain"], row["seed"]) != (domain, seed)]
    repeated = list(dict.fromkeys(others))
    titles = " | ".join(["domain", "student", "teacher", *repeated, "difference", "seeds"])
    lines += ["", f"| {titles} |", "|---" * (len(repeated) + 5) + "|"]
    for reference in references:
        own = [
            {row["seed"]: row["accuracy"] for row in rows if (row["domain"], row["variant"]) == (name, variant)}
            for name, variant in ((reference["domain"], variant) for variant in repeated)
        ]
        gain = spread([own[-1][seed] - own[0][seed] for seed in own[0]])
        models = " | ".join(f"{reference[model]:.1f}" for model in ("student", "teacher"))
        cells = " | ".join(f"{fmean(found.values()):.1f}" for found in own)
        lines.append(f"| {reference['domain']} | {models} | {cells} | {_cell(gain)} | {gain.n} |")
    return "\n".join(lines)


def limits_table(rows: Sequence[Row]) -> str:
    """Base, new and H of each run, and the share of the gap in H between student and teacher that it closes."""
    student, teacher = (next(row["h"] for row in rows if row["run"] == name) for name in ("student", "teacher"))
    lines = ["| run | images | steps | base / new / H | gap closed |", "|---|---|---|---|---|"]
    for row in rows:
        rates = " / ".join(f"{row[name]:.1f}" for name in ("base", "new", "h"))
        sizes = [f"{row[name]:,}" if name in row else "" for name in ("n_images", "steps")]
        closed = f"{100 * (row['h'] - student) / (teacher - student):.0f} %"
        lines.append(f"| {row['run']} | {' | '.join(sizes)} | {rates} | {closed} |")
    return "\n".join(lines)


def _cell(gain: Spread) -> str:
    return f"{gain.mean:+.1f}" + (f" ± {gain.sd:.1f}" if gain.sd is not None else "")
