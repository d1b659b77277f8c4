"""The command `teachers`: the runs of `teacher_runs`, as JSON and as tables in the documentation."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from rich.console import Console

from training.demo.pages import fill_page
from training.demo.shifts import SHIFTED
from training.demo.teacher_runs import ARMS, Sizes, TeacherRuns, planned
from training.demo.teacher_tables import complete_seeds, gaps_table, targets_table
from training.evaluation.arguments import numbers

RESULTS: Final = Path("docs/results/demo-teachers.json")
PAGE: Final = Path("docs/demo-world.md")


def teachers(
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "1,2",
    work_dir: Annotated[Path, typer.Option(help="Folder for finished runs; interrupted runs resume.")] = Path(
        "build/demo/teachers"
    ),
) -> None:
    """Boost every domain from one teacher or two, and update the documentation after each complete seed."""
    chosen = numbers(seeds, "--seeds", least=0)
    torch.set_num_threads(1)
    console, sizes = Console(stderr=True), Sizes()
    runs = TeacherRuns(work_dir, sizes)
    references = [row for domain in SHIFTED for row in runs.references(domain)]
    rows: list[dict[str, Any]] = []
    for seed, domain, arm in planned(chosen):
        rows.append(runs.row(seed, domain, arm))
        console.print(json.dumps(rows[-1]), markup=False, highlight=False, soft_wrap=True)
        if len(rows) == len(complete_seeds(rows)) * len(SHIFTED) * len(ARMS):
            recipe = runs.recipe(arm, seed)
            facts = asdict(sizes) | {"batch_size": recipe.batch_size, "temperature": recipe.temperature}
            write_results(facts, references, rows, RESULTS)
            fill_tables(RESULTS, PAGE)


def write_results(
    facts: dict[str, Any], references: list[dict[str, Any]], rows: list[dict[str, Any]], path: Path
) -> None:
    """Write the sizes of the runs, the rates without training and those of the runs, one row per line."""
    lists = {"references": references, "rows": rows}
    parts = [
        f' "{name}": [\n  ' + ",\n  ".join(json.dumps(row) for row in found) + "\n ]" for name, found in lists.items()
    ]
    path.write_text(json.dumps(facts)[:-1] + ",\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def fill_tables(results: Path, page: Path) -> None:
    """Update both tables of a page from the results."""
    found = json.loads(results.read_text(encoding="utf-8"))
    fill_page(page, "demo-teachers-targets", targets_table(found["references"]))
    fill_page(page, "demo-teachers", gaps_table(found["references"], found["rows"]))
