"""Attribute words, TCP and PromptKD in a demo domain: `python -P -m training.demo.further_methods --help`.

Methods with labels run the base-to-new protocol as in `adapt_domains`. PromptKD gets the input of boosting: unlabelled
images and all class names. Its teacher is prompted with PromptSRC on labelled images of the base classes, as in its
paper. Finished rows and bundles are reused.
"""

import json
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from rich.console import Console

from prompt_store.bundle import Bundle, read_bundle
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.model import PromptedClip
from prompted_clip.stack import PromptStack
from training.adapting.methods import METHODS
from training.boost_run import BoostJob, run_boost
from training.data.dataset import Dataset
from training.data.few_shot import base_and_new
from training.data.images import ImageFolder, find_images
from training.demo.adapt_domains import SEEDS, SHOTS, draw_labelled, measure, read_recipes, table_line
from training.demo.boost_domains import N_UNLABELLED, stack_scores
from training.demo.evaluate import TEMPLATE, TEST_SEED, accuracy
from training.demo.folders import write_folders
from training.demo.pages import fill_page
from training.demo.render import Pictures, draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import CLASS_NAMES
from training.evaluation.bench import Bench, Trial, recipe_digest
from training.evaluation.predict import Predictor
from training.evaluation.rows import Results, short_digest
from training.files import read_bundle_file
from training.recipe import BoostRecipe, read_recipe, validate_recipe
from training.unlabelled import UnlabelledData

RECIPES: Final = Path(__file__).with_name("further.toml")
PROMPTKD: Final = "promptkd"
N_TEST: Final = 2000
RESULTS: Final = Path("docs/results/demo-further.json")
PAGE: Final = Path("docs/methods.md")
BUNDLES: Final = Path("service/demo/bundles")
_QUIET: Final = Console(quiet=True)

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Distillation:
    """What the PromptKD runs of one domain share."""

    domain: str
    student: Backbone
    teacher: Backbone
    images: ImageFolder
    test: Pictures
    recipe: BoostRecipe
    work_dir: Path

    def row(self, teacher_bundle: Bundle, boost: Bundle | None, seed: int) -> Row:
        """Train PromptKD's student, unless its bundle exists, and measure it."""
        recipe = self.recipe.model_copy(update={"seed": seed})
        digests = [teacher_bundle.digest, boost.digest if boost is not None else ""]
        identity = [recipe_digest(recipe), self.images.digest, *digests]
        out = self.work_dir / f"{self.domain}-{PROMPTKD}-{short_digest(identity)}.safetensors"
        if not out.is_file():
            job = BoostJob(
                domain=self.domain,
                sources={self.domain: UnlabelledData(self.images, CLASS_NAMES)},
                out=out,
                checkpoint=out.with_suffix(".checkpoint"),
                teacher_bundles=[teacher_bundle],
                boost=boost,
            )
            run_boost(job, recipe, self.student, [self.teacher], _QUIET)
        model = PromptedClip(self.student)
        facts = {"domain": self.domain, "method": PROMPTKD, "boosted": boost is not None, "seed": seed}
        return facts | self.rates(model, model.load_stack(read_bundle_file(out)))

    def rates(self, model: PromptedClip, stack: PromptStack) -> Row:
        """Base, new and H in per cent; each half is classified among its own classes."""
        found = accuracy(stack_scores(model, stack, self.test), self.test.labels)
        rates = {"base": found.base, "new": found.new, "h": found.harmonic_mean}
        return {name: round(100 * rate, 2) for name, rate in rates.items()}


def trials(path: Path = RECIPES) -> Iterator[tuple[str, Trial]]:
    """The runs with labels, from a TOML file with one table per line of the results: label and trial."""
    for label, values in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if label == PROMPTKD:
            continue
        method = values.pop("method", label)
        recipe = validate_recipe(METHODS[method].recipe, values)
        for seed in SEEDS:
            yield label, Trial.of(method, recipe, shots=SHOTS, seed=seed)


def measure_domain(domain: str, bundles: Path, work_dir: Path, console: Console) -> dict[str, Any]:
    """Run every method in one domain, with and without boosting.

    Args:
        domain: a name of `shifts.DOMAINS`.
        bundles: folder of the boosting bundles, `<domain>.safetensors`.
        work_dir: folder for rows, bundles and checkpoints.
        console: shows finished rows.

    Returns:
        `rows` with `domain`, `method`, `boosted`, `seed`, and `base`, `new`, `h` in per cent; and `teachers`, the same
        rates of PromptKD's teachers.
    """
    student, teacher = load_backbone("demo-student"), load_backbone("demo-teacher")
    predictor, boost = Predictor(student), read_bundle_file(bundles / f"{domain}.safetensors")
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        console.print(json.dumps(row), markup=False, highlight=False, soft_wrap=True)

    with tempfile.TemporaryDirectory() as folder:
        dataset = draw_labelled(domain, Path(folder) / domain)
        write_folders(domain, Path(folder) / "unlabelled", n_train=N_UNLABELLED, n_test=0)
        shared = Distillation(
            domain,
            student,
            teacher,
            find_images(Path(folder) / "unlabelled" / "train"),
            draw_series(TEST_SEED, N_TEST, restyle=DOMAINS[domain]),
            read_recipe(BoostRecipe, RECIPES, table=PROMPTKD),
            work_dir,
        )
        for base in (None, boost):
            bench = Bench(predictor, Results(work_dir), _QUIET, base)
            add(measure(bench, dataset, Trial(), domain))
            for label, trial in trials():
                add(measure(bench, dataset, trial, domain) | {"method": label})
        prompted = _prompted_teacher(teacher, dataset, work_dir)
        for seed in SEEDS:
            for base in (None, boost):
                add(shared.row(prompted, base, seed))
    model = PromptedClip(teacher)
    plain = model.plain_stack(domain, CLASS_NAMES, [TEMPLATE])
    tuned = model.with_labels(model.load_stack(prompted), CLASS_NAMES)
    teachers = {"plain": shared.rates(model, plain), "prompted": shared.rates(model, tuned)}
    facts = {"n_unlabelled": N_UNLABELLED, "n_test": N_TEST, "shots": SHOTS, "seeds": list(SEEDS)}
    return facts | {"teachers": teachers, "rows": rows}


def markdown_table(results: Mapping[str, Any]) -> str:
    """Base, new and H of each method, with and without boosting, as Markdown; see `adapt_domains.markdown_table`."""
    rows: Sequence[Row] = results["rows"]
    lines = ["| method | alone: base / new / H | with boosting: base / new / H | H gained |", "|---|---|---|---|"]
    lines += [table_line(rows, method, method) for method in dict.fromkeys(row["method"] for row in rows)]
    teachers = "; ".join(
        f"{name} {' / '.join(f'{rates[key]:.1f}' for key in ('base', 'new', 'h'))}"
        for name, rates in results["teachers"].items()
    )
    domains = ", ".join(dict.fromkeys(row["domain"] for row in rows))
    return "\n".join([*lines, "", f"Domain: {domains}. Teachers of PromptKD: {teachers}."])


def _prompted_teacher(teacher: Backbone, dataset: Dataset, work_dir: Path) -> Bundle:
    """The teacher with PromptSRC's prompts, trained on the shots of the base classes."""
    bench = Bench(Predictor(teacher), Results(work_dir), _QUIET)
    trial = Trial.of("promptsrc", read_recipes()["promptsrc"], shots=SHOTS, seed=SEEDS[0])
    base, _ = base_and_new(bench.sample(trial, dataset))
    _, training = bench.prepare(trial, base, dataset.name)
    if training is None:
        raise TypeError("a trial with a recipe has a training")
    return read_bundle((bench.results.training_folder(training) / "bundle.safetensors").read_bytes())


def main(
    domain: Annotated[str, typer.Argument(help="Name of a demo domain.")] = "thermal",
    work_dir: Annotated[Path, typer.Option(help="Folder for rows and bundles; interrupted runs resume.")] = Path(
        "build/demo/further"
    ),
) -> None:
    """Run every method in one domain with and without boosting, and update the table in the documentation."""
    torch.set_num_threads(1)
    found = measure_domain(domain, BUNDLES, work_dir, Console(stderr=True))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    fill_page(PAGE, "demo-further", markdown_table(found))


if __name__ == "__main__":
    typer.run(main)
