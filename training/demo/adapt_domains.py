"""Adapts every demo domain with four methods, with and without boosting, using the base-to-new protocol.

Finished rows are saved in the work folder, so interrupted runs resume.
"""

import json
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from training.adapting.methods import METHODS
from training.data.dataset import Dataset
from training.data.folder_per_class import read_class_folders
from training.demo.domain_pool import map_domains
from training.demo.evaluate import TEST_SEED
from training.demo.folders import write_labelled
from training.evaluation.bench import Bench, Trial
from training.evaluation.metrics import spread
from training.evaluation.predict import Predictor
from training.evaluation.protocols import base_to_new
from training.evaluation.rows import Results
from training.recipe import AdaptRecipe

RECIPES: Final = Path(__file__).with_name("adapt.toml")
SEEDS: Final = (1, 2, 3)
SHOTS: Final = 16
N_DRAWN_PER_CLASS: Final = 24
"""Labelled images per class to sample the shots from."""
N_TEST: Final = 2000
MEASURES: Final = ("base", "new", "h")

Row = dict[str, Any]


def read_recipes(path: Path = RECIPES) -> dict[str, AdaptRecipe]:
    """Read the recipe of each method from a TOML file with one table per method."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: METHODS[name].recipe.model_validate(values) for name, values in tables.items()}


def adapt_domain(domain: str, bundles: Path, work_dir: Path) -> list[Row]:
    """Run every method and seed in one domain, with and without boosting; finished rows are reused.

    Args:
        domain: a name of `shifts.DOMAINS`.
        bundles: folder of the boosting bundles, `<domain>.safetensors`.
        work_dir: folder for rows, bundles and checkpoints.

    Returns:
        Rows with `domain`, `method` (`zero-shot` for the base model), `boosted`, `seed`, and `base`, `new`, `h` in per
        cent.
    """
    predictor = Predictor(load_backbone("demo-student"))
    trials = [Trial()] + [
        Trial.of(name, recipe, shots=SHOTS, seed=seed) for name, recipe in read_recipes().items() for seed in SEEDS
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = draw_labelled(domain, Path(folder) / domain)
        for boost in (None, read_bundle((bundles / f"{domain}.safetensors").read_bytes())):
            bench = Bench(predictor, Results(work_dir), Console(quiet=True), boost)
            rows += [measure(bench, dataset, trial, domain) for trial in trials]
    return rows


def adapt_all(bundles: Path, work_dir: Path, domains: Sequence[str], *, jobs: int, console: Console) -> list[Row]:
    """Run `adapt_domain` for several domains in parallel; rows are in the order of the domains."""
    work = partial(adapt_domain, bundles=bundles, work_dir=work_dir)
    found = dict(map_domains(work, domains, jobs=jobs, title="adapting", console=console))
    return [row for domain in domains for row in found[domain]]


def report(rows: Sequence[Row], results: Path) -> None:
    """Write all rows as JSON."""
    results.parent.mkdir(parents=True, exist_ok=True)
    facts = {"shots": SHOTS, "n_test": N_TEST, "seeds": list(SEEDS)}
    results.write_text(json.dumps(facts | {"rows": list(rows)}, indent=1) + "\n", encoding="utf-8")


def markdown_table(rows: Sequence[Row]) -> str:
    """Base, new and H of each method, with and without boosting, as Markdown.

    Mean over domains of the mean over seeds; ± is the standard deviation over seeds, averaged over domains.
    """
    lines = ["| method | alone: base / new / H | with boosting: base / new / H | H gained |", "|---|---|---|---|"]
    lines += [table_line(rows, method, method) for method in dict.fromkeys(row["method"] for row in rows)]
    return "\n".join(lines)


def table_line(rows: Sequence[Mapping[str, Any]], method: str, label: str) -> str:
    """One method's line of `markdown_table`."""
    plain, boosted = (_cells(rows, method, boosted=boosted) for boosted in (False, True))
    gained = _mean(rows, method, "h", boosted=True) - _mean(rows, method, "h", boosted=False)
    return f"| {label} | {plain} | {boosted} | {gained:+.1f} |"


def domain_table(rows: Sequence[Row]) -> str:
    """H of each domain and method, alone → with boosting, mean over seeds."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| domain | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for domain in dict.fromkeys(row["domain"] for row in rows):
        own = [row for row in rows if row["domain"] == domain]
        pairs = [
            " → ".join(f"{_mean(own, method, 'h', boosted=boosted):.1f}" for boosted in (False, True))
            for method in methods
        ]
        lines.append(f"| {domain} | {' | '.join(pairs)} |")
    return "\n".join(lines)


def show_table(rows: Sequence[Row], console: Console) -> None:
    """Print the same tables."""
    for title, text in (("mean over domains", markdown_table(rows)), ("H, alone → boosted", domain_table(rows))):
        header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
        table = Table(*header, title=title)
        for cells in body:
            table.add_row(*cells)
        console.print(table)


def draw_labelled(domain: str, folder: Path) -> Dataset:
    """Draw a domain's labelled images to a folder, as a data set."""
    write_labelled(domain, folder, shots=N_DRAWN_PER_CLASS, n_test=N_TEST, test_seed=TEST_SEED)
    return read_class_folders(folder)


def measure(bench: Bench, dataset: Dataset, trial: Trial, domain: str) -> Row:
    """Run one trial with the base-to-new protocol; a row of `adapt_domain`."""
    row = base_to_new(bench, dataset, trial)
    rates = {name: None if (value := getattr(row, name)) is None else round(value, 2) for name in MEASURES}
    return {"domain": domain, "method": row.method, "boosted": row.boosted, "seed": row.seed} | rates


def _values(rows: Sequence[Mapping[str, Any]], method: str, measure: str, *, boosted: bool) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row["method"], row["boosted"]) == (method, boosted) and row[measure] is not None:
            found.setdefault(row["domain"], []).append(row[measure])
    return found


def _mean(rows: Sequence[Mapping[str, Any]], method: str, measure: str, *, boosted: bool) -> float:
    return spread([spread(values).mean for values in _values(rows, method, measure, boosted=boosted).values()]).mean


def _cells(rows: Sequence[Mapping[str, Any]], method: str, *, boosted: bool) -> str:
    cells = []
    for measure in MEASURES:
        spreads = [spread(values) for values in _values(rows, method, measure, boosted=boosted).values()]
        mean = spread([one.mean for one in spreads]).mean
        deviations = [one.sd for one in spreads if one.sd is not None]
        cells.append(f"{mean:.1f}" + (f" ± {spread(deviations).mean:.1f}" if deviations else ""))
    return " / ".join(cells)
