"""The command `shared-boost`: the runs of `shared_domains`, as JSON and as tables in the documentation."""

import json
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from rich.console import Console

from training.demo.pages import fill_page
from training.demo.shared_domains import N_CHECKED, N_OWN, N_TEST, Budget, SharedRuns, share_boosting
from training.demo.shared_tables import share_table, start_table, with_chosen
from training.evaluation.arguments import numbers

RESULTS: Final = Path("docs/results/demo-shared-boost.json")
BUNDLES: Final = Path("service/demo/bundles")
PAGE: Final = Path("docs/demo-world.md")


def shared_boost(
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "1",
    images: Annotated[int, typer.Option(min=10, help="Images of a shared run.")] = Budget.n_images,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of a shared run.")] = Budget.epochs,
    work_dir: Annotated[Path, typer.Option(help="Folder for bundles; interrupted runs resume.")] = Path("build/demo"),
) -> None:
    """Boost several domains with one set of prompts, leaving each out once, and update the documentation's tables."""
    chosen = numbers(seeds, "--seeds", least=0)
    torch.set_num_threads(1)
    runs, budget = SharedRuns(BUNDLES, work_dir / "shared", Console(stderr=True)), Budget(images, epochs)
    for rows in share_boosting(runs, chosen, budget):
        write_results(rows, runs.similarity(), budget, RESULTS)
        fill_tables(RESULTS, PAGE)


def write_results(rows: list[dict[str, Any]], similarity: float, budget: Budget, path: Path) -> None:
    """Write the rows, those of chosen prompt sets included, with the sizes of the runs and `SharedRuns.similarity`."""
    facts = {
        "n_shared": budget.n_images,
        "shared_epochs": budget.epochs,
        "n_own": N_OWN,
        "n_test": N_TEST,
        "n_checked": N_CHECKED,
        "similarity_of_own_prompts": round(similarity, 3),
    }
    lines = ",\n  ".join(json.dumps(row) for row in with_chosen(rows))
    text = json.dumps(facts)[:-1] + f', "rows": [\n  {lines}\n]}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def fill_tables(results: Path, page: Path) -> None:
    """Update both tables of a page from the results."""
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    fill_page(page, "demo-shared", share_table(rows))
    fill_page(page, "demo-start", start_table(rows))
