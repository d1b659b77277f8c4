"""`python -P -m training.demo boost-variants`: variants of boosting at equal cost, and what limits one domain."""

import json
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from rich.console import Console

from training.demo import boost_limits, boost_variants
from training.demo.folders import DRAWN
from training.demo.pages import fill_page
from training.demo.variant_tables import limits_table, variants_table
from training.evaluation.arguments import numbers

RESULTS: Final = Path("docs/results/demo-boost-variants.json")
PAGE: Final = Path("docs/demo-world.md")
BUNDLES: Final = Path("service/demo/bundles")


def run(
    seeds: Annotated[str, typer.Option(help="Comma-separated, at most 1,2,3.")] = "1,2,3",
    domains: Annotated[str, typer.Option(help="Comma-separated domains of the variants.")] = ",".join(
        boost_variants.DOMAINS
    ),
    limits: Annotated[int, typer.Option(min=0, help="Number of runs that lift a limit.")] = len(boost_limits.LIMITS),
    work_dir: Annotated[Path, typer.Option(help="Folder for finished runs.")] = Path("build/demo/variants"),
) -> None:
    """Compare variants of boosting at equal cost, then lift the limits of one domain; updates the documentation."""
    chosen, names = numbers(seeds, "--seeds", least=1), domains.split(",")
    if unknown := [seed for seed in chosen if seed not in boost_variants.SEEDS]:
        raise typer.BadParameter(f"expected some of 1,2,3, found {unknown[0]}", param_hint="--seeds")
    if unknown_names := [name for name in names if name not in DRAWN]:
        raise typer.BadParameter(
            f"expected some of {', '.join(DRAWN)}, found {unknown_names[0]}", param_hint="--domains"
        )
    torch.set_num_threads(1)
    console = Console(stderr=True)

    def show(row: dict[str, Any]) -> None:
        console.print(json.dumps(row), markup=False, highlight=False, soft_wrap=True)

    references, rows = boost_variants.run_variants(names, chosen, work_dir, show)
    bundle = BUNDLES / f"{boost_limits.DOMAIN}.safetensors"
    runs = boost_limits.LimitRuns(boost_limits.DOMAIN, bundle, work_dir)
    limit_rows = runs.references()
    for limit in boost_limits.LIMITS[:limits]:
        limit_rows.append(runs.row(limit))
        show(limit_rows[-1])
    facts = {
        "n_classes": boost_variants.N_CLASSES,
        "n_images": boost_variants.N_IMAGES,
        "epochs": boost_variants.EPOCHS,
        "n_test": boost_variants.N_TEST,
        "references": references,
        "rows": rows,
        "limits": limit_rows,
    }
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    fill_page(PAGE, "demo-boost-variants", variants_table(references, rows))
    fill_page(PAGE, "demo-boost-limits", limits_table(limit_rows))
