"""Boosts every demo domain as `caspl boost` does, and evaluates the result.

For each domain: draw unlabelled images, run the functions of `caspl boost` with one recipe for all domains, then
evaluate the plain student, the teacher and the boosted student on unseen images.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.model import PromptedClip
from prompted_clip.stack import PromptStack
from training.boost_run import BoostJob, run_boost
from training.data.images import find_images
from training.demo.domain_pool import map_domains
from training.demo.evaluate import TEMPLATE, TEST_SEED, accuracy
from training.demo.folders import write_folders
from training.demo.render import Pictures, draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import CLASS_NAMES
from training.recipe import BoostRecipe, read_recipe
from training.unlabelled import UnlabelledData

RECIPE: Final = Path(__file__).with_name("boost.toml")
N_UNLABELLED: Final = 4000
N_TEST: Final = 2000
_MODELS: Final = ("student", "teacher", "boosted")
_BATCH: Final = 250

Row = dict[str, Any]


def boost_domain(
    domain: str, out: Path, work_dir: Path, student: Backbone, teacher: Backbone, recipe: BoostRecipe, console: Console
) -> None:
    """Draw a domain's unlabelled images and train its boosting bundle `out`; resumes an interrupted run."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / domain
        write_folders(domain, pictures, n_train=N_UNLABELLED, n_test=0)
        job = BoostJob(
            domain=domain,
            sources={domain: UnlabelledData(find_images(pictures / "train"), CLASS_NAMES)},
            out=out,
            checkpoint=work_dir / f"{domain}.checkpoint",
        )
        run_boost(job, recipe, student, [teacher], console)


def measure_domain(domain: str, bundle: Path, student: Backbone, teacher: Backbone) -> Row:
    """Accuracy of the plain student, the teacher and the boosted student on unseen images of a domain.

    Returns:
        `domain`, per model `every`, `held_out`, `base`, `new` and `h` in per cent, and `gap_closed`: the share of the
        gap between student and teacher that boosting closes, for base and new classes.
    """
    pictures = draw_series(TEST_SEED, N_TEST, restyle=DOMAINS[domain])
    students, teachers = PromptedClip(student), PromptedClip(teacher)
    stacks = {
        "student": (students, students.plain_stack(domain, CLASS_NAMES, [TEMPLATE])),
        "teacher": (teachers, teachers.plain_stack(domain, CLASS_NAMES, [TEMPLATE])),
        "boosted": (students, students.load_stack(read_bundle(bundle.read_bytes()))),
    }
    row: Row = {"domain": domain}
    for name, (model, stack) in stacks.items():
        measured = accuracy(stack_scores(model, stack, pictures), pictures.labels)
        per_cent = {key: round(100 * value, 1) for key, value in asdict(measured).items()}
        row[name] = per_cent | {"h": round(100 * measured.harmonic_mean, 1)}
    row["gap_closed"] = {half: _gap_closed(row, half) for half in ("base", "new")}
    return row


def boost_and_measure(domain: str, out_dir: Path, work_dir: Path) -> Row:
    """Boost one domain, unless its bundle exists, and evaluate it; resumes an interrupted run.

    Args:
        domain: a name of `shifts.DOMAINS`.
        out_dir: folder for the bundles, `<domain>.safetensors`.
        work_dir: folder for checkpoints.
    """
    student, teacher = load_backbone("demo-student"), load_backbone("demo-teacher")
    recipe = read_recipe(BoostRecipe, RECIPE)
    bundle = out_dir / f"{domain}.safetensors"
    if not bundle.exists() or not _made_for(bundle, student, teacher, recipe):
        boost_domain(domain, bundle, work_dir, student, teacher, recipe, Console(quiet=True))
    return measure_domain(domain, bundle, student, teacher)


def boost_all(
    out_dir: Path, results: Path, work_dir: Path, domains: Sequence[str], *, jobs: int, console: Console
) -> list[Row]:
    """Boost and evaluate domains in parallel; existing bundles are only evaluated.

    Args:
        out_dir: folder for the bundles.
        results: JSON file for the rows.
        work_dir: folder for checkpoints.
        domains: names of `shifts.DOMAINS`.
        jobs: number of parallel processes.
        console: shows progress.
    """
    work = partial(boost_and_measure, out_dir=out_dir, work_dir=work_dir)
    found = dict(map_domains(work, domains, jobs=jobs, title="boosting", console=console))
    rows = [found[domain] for domain in domains]
    results.parent.mkdir(parents=True, exist_ok=True)
    report = {"n_unlabelled": N_UNLABELLED, "n_test": N_TEST, "rows": rows}
    results.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in docs/demo-world.md: base / new / H per model, and the share of the gap that boosting closes."""
    lines = [
        "| domain | student | teacher | student + boosting | gap closed, base / new |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [" / ".join(f"{row[name][key]:.1f}" for key in ("base", "new", "h")) for name in _MODELS]
        closed = " / ".join(_closed_text(row["gap_closed"][half]) for half in ("base", "new"))
        lines.append(f"| {row['domain']} | {cells[0]} | {cells[1]} | **{cells[2]}** | {closed} |")
    return "\n".join(lines)


def show_table(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the same table."""
    table = Table("domain", *_MODELS, "gap closed", title="zero-shot accuracy, %: base / new / H")
    for row in rows:
        cells = [" / ".join(f"{row[name][key]:.1f}" for key in ("base", "new", "h")) for name in _MODELS]
        closed = " / ".join(_closed_text(row["gap_closed"][half]) for half in ("base", "new"))
        table.add_row(row["domain"], *cells, closed)
    console.print(table)


@torch.inference_mode()
def stack_scores(model: PromptedClip, stack: PromptStack, pictures: Pictures) -> torch.Tensor:
    """Logits of all images over the stack's classes: [N, K]."""
    batches = [pictures.pixels[start : start + _BATCH] for start in range(0, len(pictures), _BATCH)]
    scored = [model.logits(model.encode_images(batch, [stack] * len(batch)), stack) for batch in batches]
    return torch.cat(scored)


def _gap_closed(row: Row, half: str) -> float | None:
    """Share of the gap closed, in per cent; None if the gap is less than one point."""
    lead = row["teacher"][half] - row["student"][half]
    return round(100 * (row["boosted"][half] - row["student"][half]) / lead, 1) if lead >= 1 else None


def _closed_text(share: float | None) -> str:
    return "no gap" if share is None else f"{share:.0f} %"


def _made_for(bundle: Path, student: Backbone, teacher: Backbone, recipe: BoostRecipe) -> bool:
    """Whether a bundle was trained with this recipe and these backbones."""
    manifest = read_bundle(bundle.read_bytes()).manifest
    return (
        manifest.backbone.fingerprint == student.fingerprint
        and (manifest.provenance.teacher or {}).get("fingerprint") == teacher.fingerprint
        and BoostRecipe.model_validate(manifest.provenance.recipe) == recipe
    )
