"""The command `shared-boost`: the runs of `shared_domains`, as JSON and as tables in the documentation."""

import json
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from rich.console import Console

from training.demo import shared_domains
from training.demo.pages import fill_page
from training.demo.shared_tables import share_table, start_table, with_chosen

RESULTS: Final = Path("docs/results/demo-shared-boost.json")
BUNDLES: Final = Path("service/demo/bundles")
PAGE: Final = Path("docs/demo-world.md")


def shared_boost(
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "1",
    work_dir: Annotated[Path, typer.Option(help="Folder for bundles; interrupted runs resume.")] = Path("build/demo"),
) -> None:
    """Boost several domains with one set of prompts, leaving each out once, and update the documentation's tables."""
    torch.set_num_threads(1)
    numbers = [int(seed) for seed in seeds.split(",")]
    for rows in shared_domains.share_boosting(BUNDLES, work_dir / "shared", numbers, Console(stderr=True)):
        write_results(rows, RESULTS)
        fill_tables(RESULTS, PAGE)


def write_results(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows, those of chosen prompt sets included, with the sizes of the runs."""
    names = ("N_SHARED", "SHARED_EPOCHS", "N_OWN", "N_TEST", "N_CHECKED")
    facts = {name.lower(): getattr(shared_domains, name) for name in names}
    lines = ",\n  ".join(json.dumps(row) for row in with_chosen(rows))
    text = json.dumps(facts)[:-1] + f', "rows": [\n  {lines}\n]}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def fill_tables(results: Path, page: Path) -> None:
    """Update both tables of a page from the results."""
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    fill_page(page, "demo-shared", share_table(rows))
    fill_page(page, "demo-start", start_table(rows))
