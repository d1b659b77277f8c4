"""One set of boosting prompts for several demo domains, measured on domains that it saw and on one that it did not.

Each domain is left out once: prompts are boosted on the other domains, on synthesised styles, or on both, and compared
with the domain's own boosting, the packaged bundle.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from prompted_clip.backbone import load_backbone
from prompted_clip.model import PromptedClip
from prompted_clip.prompts import join_groups
from prompted_clip.stack import PromptStack
from training.boost_run import BoostJob, run_boost
from training.caspl_student import CasplStudent
from training.data.images import ImageFolder
from training.demo.boost_domains import RECIPE, stack_scores
from training.demo.evaluate import TEMPLATE, TEST_SEED
from training.demo.folders import FOLDER_TRAIN_SEED, STYLES, cached_images
from training.demo.render import Pictures, draw_series
from training.demo.shifts import SHIFTED
from training.demo.world import CLASS_NAMES
from training.evaluation.bench import recipe_digest
from training.evaluation.rows import short_digest
from training.files import read_bundle_file, write_atomic
from training.recipe import BoostRecipe, read_recipe
from training.unlabelled import UnlabelledData

N_OWN: Final = 480
"""Images of a domain's own short runs, cold or from shared prompts."""
OWN_EPOCHS: Final = (2, 4, 8)
N_TEST: Final = 768
N_CHECKED: Final = 100
"""Unlabelled images of a domain by which a prompt set is chosen."""
START: Final = "union+styles"
"""The shared prompts that short runs start from."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """Size of every shared run.

    Attributes:
        n_images: images of all of its sources.
        epochs: how often it sees each image.
    """

    n_images: int = 1200
    epochs: int = 4


@dataclass(frozen=True)
class Run:
    """One boosting run.

    Attributes:
        way: `union` (of the other domains), `styles`, `union+styles`, or for a domain's own short runs `cold`, or
            `start` from the prompts of another run.
        seed: the recipe's.
        left_out: the domain that a shared run does not see, or the only domain of a short run; None for `styles`.
        sources: the domains that it trains on, with their numbers of images.
        epochs: how often it sees each image.
        start: the run whose prompts it starts from.
    """

    way: str
    seed: int
    left_out: str | None
    sources: tuple[tuple[str, int], ...]
    epochs: int
    start: "Run | None" = None

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains to measure it in."""
        is_own = self.way in {"cold", "start"}
        return (self.left_out,) if is_own and self.left_out is not None else tuple(SHIFTED)


def own_run(domain: str, seed: int, epochs: int, start: Run | None = None) -> Run:
    """A short run on a domain's own images, cold or from a start."""
    return Run("cold" if start is None else "start", seed, domain, ((domain, N_OWN),), epochs, start)


def shared_run(way: str, left_out: str, seed: int, budget: Budget) -> Run:
    """A shared run that does not see `left_out`; half of the images of `union+styles` are of domains."""
    n_images = budget.n_images
    if way == "styles":
        return Run(way, seed, None, ((STYLES, n_images),), budget.epochs)
    others = [domain for domain in SHIFTED if domain != left_out]
    n_styles = n_images // 2 if way == "union+styles" else 0
    sources = [(domain, (n_images - n_styles) // len(others)) for domain in others]
    sources += [(STYLES, n_styles)] if n_styles else []
    return Run(way, seed, left_out, tuple(sources), budget.epochs)


def planned(seed: int, budget: Budget) -> Iterator[Run]:
    """All runs of one seed; each run follows the one that it starts from."""
    yield shared_run("styles", next(iter(SHIFTED)), seed, budget)
    for domain in SHIFTED:
        start = shared_run(START, domain, seed, budget)
        yield start
        for epochs in OWN_EPOCHS:
            yield own_run(domain, seed, epochs)
            yield own_run(domain, seed, epochs, start)
    yield from (shared_run("union", domain, seed, budget) for domain in SHIFTED)


def share_boosting(runs: "SharedRuns", seeds: Sequence[int], budget: Budget) -> Iterator[list[Row]]:
    """Measure what needs no training, then train and measure all runs of these seeds; yields the rows so far."""
    rows = runs.without_training()
    yield rows
    for seed in seeds:
        for run in planned(seed, budget):
            rows += runs.measure(run)
            yield rows


class SharedRuns:
    """Trains runs and measures them; finished ones are read from the work folder.

    Args:
        bundles: folder of the domains' own boosting bundles.
        work_dir: folder for images, bundles, checkpoints and rows.
        console: shows progress.
    """

    def __init__(self, bundles: Path, work_dir: Path, console: Console) -> None:
        self._bundles = bundles
        self._work_dir = work_dir
        self._console = console
        self._recipe = read_recipe(BoostRecipe, RECIPE)
        self._student, self._teacher = load_backbone("demo-student"), load_backbone("demo-teacher")
        self._models = {"student": PromptedClip(self._student), "teacher": PromptedClip(self._teacher)}
        self._pictures: dict[tuple[int, str], Pictures] = {}
        self._targets: dict[str, torch.Tensor] = {}

    def without_training(self) -> list[Row]:
        """Rows of `plain` and `teacher` without prompts, each domain's `own` bundle, and the `mean` of the others'."""
        rows = []
        for way, name in (("plain", "student"), ("teacher", "teacher")):
            stack = self._models[name].plain_stack("demo", CLASS_NAMES, [TEMPLATE])
            facts = {"way": way, "seed": None, "left_out": None, "epochs": 0}
            rows += self._rows(facts, name, stack, tuple(SHIFTED))
        for domain in SHIFTED:
            facts = {"way": "own", "seed": None, "left_out": domain, "epochs": self._recipe.epochs}
            rows += self._rows(facts, "student", self._own(domain), tuple(SHIFTED))
        for left_out in SHIFTED:
            facts = {"way": "mean", "seed": None, "left_out": left_out, "epochs": 0}
            others = [domain for domain in SHIFTED if domain != left_out]
            rows += self._rows(facts, "student", self._mean_of(others), tuple(SHIFTED))
        return rows

    def similarity(self) -> float:
        """Mean cosine similarity of what two domains' own bundles learned: image prompts minus those they start as."""
        start = CasplStudent(self._student, CLASS_NAMES, self._recipe).image.detach()
        learned = [
            (stack.image_boost - start).flatten() for stack in map(self._own, SHIFTED) if stack.image_boost is not None
        ]
        pairs = itertools.combinations(learned, 2)
        found = [torch.nn.functional.cosine_similarity(a, b, dim=0).item() for a, b in pairs]
        return sum(found) / len(found)

    def measure(self, run: Run) -> list[Row]:
        """Train a run unless its bundle exists, and measure it in its domains.

        Returns:
            Per domain: `way`, `seed`, `left_out`, `epochs`, `domain`, and in per cent `accuracy` on test images and
            `agreement` with the teacher on the checked images.
        """
        stack = self._models["student"].load_stack(read_bundle_file(self._bundle(run)))
        facts = {"way": run.way, "seed": run.seed, "left_out": run.left_out, "epochs": run.epochs}
        return self._rows(facts, "student", stack, run.domains)

    def _own(self, domain: str) -> PromptStack:
        """The stack of a domain's own boosting bundle."""
        return self._models["student"].load_stack(read_bundle_file(self._bundles / f"{domain}.safetensors"))

    def _mean_of(self, domains: Sequence[str]) -> PromptStack:
        """A stack of the mean of domains' own prompts."""
        stacks = [self._own(domain) for domain in domains]
        image = torch.stack([stack.image_boost for stack in stacks if stack.image_boost is not None]).mean(0)
        text = torch.stack([stack.text_boost for stack in stacks if stack.text_boost is not None]).mean(0)
        digest = short_digest([stack.digest for stack in stacks])
        mean = replace(
            stacks[0],
            digest=digest,
            image_digest=digest,
            image_boost=image,
            image=join_groups([image]),
            text_boost=text,
        )
        return self._models["student"].with_labels(mean, CLASS_NAMES)

    def _bundle(self, run: Run) -> Path:
        """The bundle of a run, trained if it does not exist."""
        out = self._work_dir / "bundles" / f"{self._name(run)}.safetensors"
        if not out.is_file():
            title = f"{run.way}, seed {run.seed}, {run.left_out or 'no domain'}, {run.epochs} epochs"
            self._console.print(title, highlight=False)
            job = BoostJob(
                domain="shared",
                sources={name: UnlabelledData(self._images(name, n), CLASS_NAMES) for name, n in run.sources},
                out=out,
                checkpoint=out.with_suffix(".checkpoint"),
                checkpoint_every=50,
                start=None if run.start is None else read_bundle_file(self._bundle(run.start)),
            )
            run_boost(job, self._recipe_of(run), self._student, [self._teacher], Console(quiet=True))
        return out

    def _recipe_of(self, run: Run) -> BoostRecipe:
        return self._recipe.model_copy(update={"seed": run.seed, "epochs": run.epochs})

    def _name(self, run: Run) -> str:
        """A file name that depends on all that the run depends on."""
        identity = [
            recipe_digest(self._recipe_of(run)),
            self._student.fingerprint,
            self._teacher.fingerprint,
            *(self._images(name, n).digest for name, n in run.sources),
            self._name(run.start) if run.start is not None else "",
        ]
        return f"{run.way}-{run.left_out or 'all'}-{run.seed}-{short_digest(identity)}"

    def _images(self, domain: str, n_images: int) -> ImageFolder:
        return cached_images(domain, self._work_dir / "images", n_images)

    def _rows(self, facts: Row, model: str, stack: PromptStack, domains: Sequence[str]) -> list[Row]:
        """A stack measured in domains; read from the work folder if it was measured before."""
        key = short_digest(
            [self._models[model].backbone.fingerprint, str(stack.digest), *domains, str((N_TEST, N_CHECKED))]
        )
        path = self._work_dir / "rows" / f"{facts['way']}-{facts['left_out'] or 'all'}-{key}.json"
        if not path.is_file():
            measured = [self._measured(self._models[model], stack, domain) for domain in domains]
            write_atomic(path, json.dumps(measured).encode())
        return [facts | row for row in json.loads(path.read_text(encoding="utf-8"))]

    def _measured(self, model: PromptedClip, stack: PromptStack, domain: str) -> Row:
        test, checked = self._drawn(TEST_SEED, N_TEST, domain), self._drawn(FOLDER_TRAIN_SEED, N_CHECKED, domain)
        scores_NK, checked_UK = (stack_scores(model, stack, pictures) for pictures in (test, checked))
        target_UK = self._target(domain)
        return {
            "domain": domain,
            "accuracy": _per_cent(scores_NK.argmax(1) == test.labels),
            "agreement": _per_cent(checked_UK.argmax(1) == target_UK.argmax(1)),
        }

    def _target(self, domain: str) -> torch.Tensor:
        """The teacher's scores of the checked images."""
        if domain not in self._targets:
            teacher = self._models["teacher"]
            stack = teacher.plain_stack("demo", CLASS_NAMES, [TEMPLATE])
            self._targets[domain] = stack_scores(teacher, stack, self._drawn(FOLDER_TRAIN_SEED, N_CHECKED, domain))
        return self._targets[domain]

    def _drawn(self, series: int, n: int, domain: str) -> Pictures:
        if (series, domain) not in self._pictures:
            self._pictures[series, domain] = draw_series(series, n, restyle=SHIFTED[domain])
        return self._pictures[series, domain]


def _per_cent(is_right: torch.Tensor) -> float:
    return round(100 * is_right.float().mean().item(), 1)
