"""Writes `ablation.json`, `ablation.md` and, if matplotlib is installed, plots."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from training.ablation.report import AblationReport, published_markdown
from training.evaluation.metrics import Spread
from training.evaluation.output import draw_if_possible
from training.files import write_atomic

JSON_NAME: Final = "ablation.json"
MARKDOWN_NAME: Final = "ablation.md"


def write_ablation(report: AblationReport, folder: Path, console: Console) -> dict[str, Any]:
    """Write a report, replacing an existing one.

    Returns:
        The JSON object that was written.
    """
    pictures = draw_if_possible(lambda: _draw(report, folder), console)
    content = report.to_json() | {"pictures": pictures}
    student, job = report.facts["student"], report.job
    lines = [
        "# Ablation",
        "",
        f"{job.method} on {', '.join(dataset.name for dataset in job.datasets)}, base-to-new, {job.shots} images per "
        f"base class; student {student['arch']} ({student['pretrained']}), teacher {report.facts['teacher']['arch']}.",
        f"In per cent, mean ± sample standard deviation over the seeds {', '.join(map(str, job.seeds))}.",
        "",
        report.to_markdown(),
        "",
        published_markdown(),
        "",
        *(f"![{name.removesuffix('.png')}]({name})" for name in pictures),
    ]
    write_atomic(folder / JSON_NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(folder / MARKDOWN_NAME, ("\n".join(lines) + "\n").encode())
    console.print(f"wrote {folder / MARKDOWN_NAME} and {JSON_NAME}", markup=False, soft_wrap=True)
    return content


def _draw(report: AblationReport, folder: Path) -> list[Path]:
    from training.evaluation.plots import draw_budgets, draw_heat_maps  # noqa: PLC0415  matplotlib is optional

    grid, studies, paths = report.grid, report.job.studies, []
    if "depth" in studies:
        panels = [("H by depth", _values(report.depth_table()))]
        paths.append(
            draw_heat_maps(panels, grid.depths, ("depth, phase 1", "depth, phase 2"), folder / "ablation-depth.png")
        )
    if "tokens" in studies:
        panels = [
            (f"boosting prompts {name}", _values(report.tokens_table(learnable=learnable)))
            for name, learnable in (("frozen", False), ("learnable", True))
        ]
        labels = ("boosting prompts", "adapting prompts")
        paths.append(draw_heat_maps(panels, grid.tokens, labels, folder / "ablation-tokens.png"))
    if "budget" in studies:
        pairs = [[report.h(setting) for setting in grid.budget_settings(total)] for total in grid.budgets]
        alone, cascade = ([pair[side] for pair in pairs] for side in (0, 1))
        paths.append(draw_budgets(grid.budgets, alone, cascade, folder / "ablation-budget.png"))
    return paths


def _values(table: list[list[Spread | None]]) -> NDArray[np.float64]:
    return np.array([[np.nan if cell is None else cell.mean for cell in row] for row in table])
