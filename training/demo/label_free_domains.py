"""Label-free methods in every demo domain, with and without boosting.

All methods get the input of boosting: the same unlabelled images of a domain, and the names of all 80 classes. Accuracy
is measured on unseen images; those of each half of the classes are classified among that half. Finished bundles and
rows are reused.
"""

import json
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from prompted_clip.model import PromptedClip
from prompted_clip.stack import PromptStack
from training.adapting.reference import TextSettings
from training.data.images import ImageFolder, find_images
from training.demo.adapt_domains import table_line
from training.demo.boost_domains import N_UNLABELLED, stack_scores
from training.demo.domain_pool import map_domains
from training.demo.evaluate import TEMPLATE, TEST_SEED, accuracy
from training.demo.folders import write_folders
from training.demo.render import Pictures, draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import CLASS_NAMES
from training.evaluation.bench import recipe_digest
from training.evaluation.metrics import spread
from training.evaluation.rows import ZERO_SHOT, short_digest
from training.files import write_atomic
from training.label_free.methods import LABEL_FREE
from training.label_free_run import LabelFreeJob, encode, run_label_free, teacher_scores
from training.prompted_backbone import PromptedBackbone, boosted_backbone
from training.recipe import read_recipe
from training.unlabelled import by_content

RECIPES: Final = Path(__file__).with_name("label_free.toml")
SEEDS: Final = (1, 2, 3)
ONE_SEED: Final = frozenset({"grip", "grip-visual", "grip-multimodal", "lp-clip", "lafter"})
"""Recipes that run with one seed to save time; so do all methods with the teacher's labels."""
N_TEST: Final = 2000
LABELS: Final = {False: "own", True: "teacher"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A method with its recipe and seed, and whether the teacher predicts the pseudo-labels.

    `name` is the recipe's table in the file: the method, or a method with another kind of prompts.
    """

    name: str
    method: str
    recipe: TextSettings
    seed: int | None
    has_teacher: bool


def recipe_names(path: Path = RECIPES) -> tuple[str, ...]:
    """The tables of a TOML file of recipes: `<method>` or `<method>-<kind of prompts>`."""
    return tuple(tomllib.loads(path.read_text(encoding="utf-8")))


def variants(names: Sequence[str] | None = None, path: Path = RECIPES) -> Iterator[Variant]:
    """The runs of one domain with the recipes of these names, or with all."""
    for name in recipe_names(path) if names is None else names:
        method = next(method for method in LABEL_FREE if name == method or name.startswith(f"{method}-"))
        entry = LABEL_FREE[method]
        recipe = read_recipe(entry.recipe, path, table=name)
        for has_teacher in (False, True) if entry.takes_teacher and name == method else (False,):
            seeds = SEEDS[:1] if has_teacher or name in ONE_SEED else SEEDS
            if "seed" not in entry.recipe.model_fields:
                yield Variant(name, method, recipe, None, has_teacher)
                continue
            for seed in seeds:
                yield Variant(name, method, recipe.model_copy(update={"seed": seed}), seed, has_teacher)


def learn_domain(domain: str, names: Sequence[str], bundles: Path, work_dir: Path) -> list[Row]:
    """Run every variant in one domain, with and without boosting.

    Args:
        domain: a name of `shifts.DOMAINS`.
        names: of the recipes.
        bundles: folder of the boosting bundles, `<domain>.safetensors`.
        work_dir: folder for bundles, rows and checkpoints.

    Returns:
        Rows with `domain`, `method` (the recipe's name, or `zero-shot` for the base model), `labels` (the model that
        predicts the pseudo-labels: `own` or `teacher`), `boosted`, `seed`, and `base`, `new`, `h`, `all` in per cent.
    """
    student, teacher = load_backbone("demo-student"), load_backbone("demo-teacher")
    model, test = PromptedClip(student), draw_series(TEST_SEED, N_TEST, restyle=DOMAINS[domain])
    boost = read_bundle((bundles / f"{domain}.safetensors").read_bytes())
    rows, quiet = [], Console(quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        write_folders(domain, Path(folder) / domain, n_train=N_UNLABELLED, n_test=0)
        images = by_content(find_images(Path(folder) / domain / "train"))
        teacher_UK = cache(partial(teacher_scores, teacher, images.files, CLASS_NAMES, TEMPLATE, quiet))
        for base_model in (PromptedBackbone(student), boosted_backbone(student, boost)):
            is_boosted = base_model.boost_digest is not None
            zero_shot = model.load_stack(boost) if is_boosted else model.plain_stack(domain, CLASS_NAMES, [TEMPLATE])
            facts = {"domain": domain, "boosted": is_boosted}
            rows.append(facts | _measured(model, zero_shot, test, ZERO_SHOT, "own", None))
            first = next(variants(names)).recipe  # all have the same text of the classes
            own = cache(partial(encode, images.files, CLASS_NAMES, first, base_model, quiet))
            for variant in variants(names):
                out = work_dir / f"{_name(variant, domain, base_model, images)}.safetensors"
                row = out.with_suffix(".json")
                if row.is_file():
                    rows.append(json.loads(row.read_text(encoding="utf-8")))
                    continue
                if not out.is_file():
                    job = LabelFreeJob(
                        domain, images, CLASS_NAMES, out, out.with_suffix(".checkpoint"),
                        teacher=teacher if variant.has_teacher else None,
                    )  # fmt: skip
                    encoded = replace(own(), scores_UK=teacher_UK()) if variant.has_teacher else own()
                    run_label_free(job, variant.method, variant.recipe, base_model, quiet, encoded=encoded)
                stack, labels = model.load_stack(read_bundle(out.read_bytes())), LABELS[variant.has_teacher]
                rows.append(facts | _measured(model, stack, test, variant.name, labels, variant.seed))
                write_atomic(row, json.dumps(rows[-1]).encode())
    return rows


def learn_domains(
    bundles: Path, results: Path, work_dir: Path, domains: Sequence[str], names: Sequence[str], *, jobs: int
) -> list[Row]:
    """Run `learn_domain` for several domains in parallel and write all rows as JSON."""
    work, console = partial(learn_domain, names=names, bundles=bundles, work_dir=work_dir), Console(stderr=True)
    found = dict(map_domains(work, domains, jobs=jobs, title="label-free", console=console))
    rows = [row for domain in domains for row in found[domain]]
    results.parent.mkdir(parents=True, exist_ok=True)
    facts = {"n_unlabelled": N_UNLABELLED, "n_test": N_TEST, "seeds": list(SEEDS)}
    results.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Base, new and H of each method, with and without boosting, as Markdown; see `adapt_domains.markdown_table`."""
    lines = ["| method | alone: base / new / H | with boosting: base / new / H | H gained |", "|---|---|---|---|"]
    for method, labels in dict.fromkeys((row["method"], row["labels"]) for row in rows):
        own = [row for row in rows if (row["method"], row["labels"]) == (method, labels)]
        name = method if method == ZERO_SHOT else f"`{method}`"
        lines.append(table_line(own, method, name + (", teacher's labels" if labels == "teacher" else "")))
    domains = ", ".join(dict.fromkeys(row["domain"] for row in rows))
    return "\n".join([*lines, "", f"Domains: {domains}."])


def domain_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """H of distilling prompts and of the best label-free method alone, per domain, as Markdown.

    The best method is chosen by the H that is shown, mean over seeds. The last line is the gain over zero-shot, mean
    and standard deviation over domains.
    """
    titles = {"own": "best alone", "teacher": "best alone, teacher's labels"}
    found = {row["labels"] for row in rows if row["method"] != ZERO_SHOT}
    sources = [labels for labels in titles if labels in found]
    header = ["domain", "zero-shot", *(titles[labels] for labels in sources), "boosting"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    columns: list[list[float]] = []
    for domain in dict.fromkeys(row["domain"] for row in rows):
        own = [row for row in rows if row["domain"] == domain]
        plain, boosted = ([row for row in own if row["boosted"] is is_boosted] for is_boosted in (False, True))
        best = [_best([row for row in plain if row["labels"] == labels]) for labels in sources]
        cells = [_mean_h(plain, ZERO_SHOT), *(h for _, h in best), _mean_h(boosted, ZERO_SHOT)]
        columns.append(cells)
        named = [f"{h:.1f} (`{method}`)" for method, h in best]
        lines.append(f"| {' | '.join([domain, f'{cells[0]:.1f}', *named, f'{cells[-1]:.1f}'])} |")
    gains = [spread([cells[index] - cells[0] for cells in columns]) for index in range(1, len(header) - 1)]
    shown = [f"{each.mean:+.1f}" + (f" ± {each.sd:.1f}" if each.sd is not None else "") for each in gains]
    return "\n".join([*lines, f"| {' | '.join(['gain', '', *shown])} |"])


def _best(rows: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """The method with the highest H, mean over seeds, and that H."""
    methods = dict.fromkeys(row["method"] for row in rows if row["method"] != ZERO_SHOT)
    return max(((method, _mean_h(rows, method)) for method in methods), key=lambda found: found[1])


def _mean_h(rows: Sequence[Mapping[str, Any]], method: str) -> float:
    return spread([row["h"] for row in rows if row["method"] == method]).mean


def _name(variant: Variant, domain: str, base_model: PromptedBackbone, images: ImageFolder) -> str:
    identity = [recipe_digest(variant.recipe), base_model.boost_digest, base_model.backbone.fingerprint, images.digest]
    words = [domain, variant.name, LABELS[variant.has_teacher], "boosted" if base_model.boost_digest else "plain"]
    return "-".join([*words, str(variant.seed), short_digest(identity)])


def _measured(
    model: PromptedClip, stack: PromptStack, test: Pictures, method: str, labels: str, seed: int | None
) -> Row:
    found = accuracy(stack_scores(model, stack, test), test.labels)
    rates = {"base": found.base, "new": found.new, "h": found.harmonic_mean, "all": found.every}
    row: Row = {"method": method, "labels": labels, "seed": seed}
    return row | {name: round(100 * rate, 2) for name, rate in rates.items()}
