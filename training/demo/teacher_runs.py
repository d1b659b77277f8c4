"""Boosting every demo domain from one teacher, or from two with weights per image, at an equal number of steps.

The recipe is the default of small backbones on fewer images. Finished runs are kept in the work folder, and interrupted
ones resume.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from torch import Tensor

from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.model import PromptedClip
from training.boost_run import BoostJob, run_boost
from training.demo.boost_domains import stack_scores
from training.demo.evaluate import TEMPLATE, TEST_SEED, accuracy
from training.demo.folders import cached_images
from training.demo.plans import SECOND_TEACHER_PLAN, STUDENT_PLAN, TEACHER_PLAN
from training.demo.render import Pictures, draw_series
from training.demo.shifts import SHIFTED
from training.demo.world import CLASS_NAMES
from training.evaluation.rows import short_digest
from training.files import read_bundle_file, write_atomic
from training.rates import boost_defaults
from training.recipe import BoostRecipe, validate_recipe
from training.teacher_weights import joint_logits
from training.unlabelled import UnlabelledData

FIRST: Final = TEACHER_PLAN.arch
SECOND: Final = SECOND_TEACHER_PLAN.arch
_QUIET: Final = Console(quiet=True)

Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """Teachers of a run, and their weights.

    Attributes:
        label: its column in the tables.
        teachers: architectures of the teachers.
        weights: `teacher_weights` of the recipe.
    """

    label: str
    teachers: tuple[str, ...]
    weights: str = "mean"


ARMS: Final = (
    Arm("first teacher", (FIRST,)),
    Arm("both, mean", (FIRST, SECOND)),
    Arm("both, entropy", (FIRST, SECOND), "entropy"),
    Arm("both, agreement", (FIRST, SECOND), "agreement"),
)


@dataclass(frozen=True)
class Sizes:
    """Size of every run.

    Attributes:
        n_images: unlabelled images.
        epochs: passes over the images.
        n_test: test images.
    """

    n_images: int = 240
    epochs: int = 5
    n_test: int = 1000


def planned(seeds: Sequence[int]) -> Iterator[tuple[int, str, Arm]]:
    """Seed, domain and arm of all runs; every seed is complete before the next one starts."""
    yield from ((seed, domain, arm) for seed in seeds for domain in SHIFTED for arm in ARMS)


class TeacherRuns:
    """Trains and measures; finished rows are read from the work folder.

    Args:
        work_dir: folder for images, bundles, checkpoints and rows.
        sizes: of every run.
    """

    def __init__(self, work_dir: Path, sizes: Sizes) -> None:
        self._work_dir, self._sizes = work_dir, sizes
        self._student = load_backbone(STUDENT_PLAN.arch)
        self._teachers = {arch: load_backbone(arch) for arch in (FIRST, SECOND)}
        self._test: dict[str, Pictures] = {}

    def recipe(self, arm: Arm, seed: int) -> BoostRecipe:
        """The default recipe of the student with the sizes of the runs."""
        values = {
            "teacher_template": TEMPLATE,
            "teacher_weights": arm.weights,
            "seed": seed,
            "epochs": self._sizes.epochs,
        }
        return boost_defaults(validate_recipe(BoostRecipe, values), self._student, _QUIET)

    def references(self, domain: str) -> list[Row]:
        """Rates of the student, the second teacher and each arm's targets, on test images without training."""
        backbones = [self._student, *self._teachers.values()]
        recipes = [self.recipe(arm, 1) for arm in ARMS]
        identity = [*(found.fingerprint for found in backbones), *(recipe.model_dump_json() for recipe in recipes)]

        def measure() -> list[Row]:
            scores = {found.arch: self._zero_shot(found, domain) for found in backbones}
            plain = {"student": STUDENT_PLAN.arch, "second teacher": SECOND}
            rows = [self._row(domain, label, scores[arch]) for label, arch in plain.items()]
            for arm, recipe in zip(ARMS, recipes, strict=True):
                target = joint_logits([scores[arch] for arch in arm.teachers], recipe)
                rows.append(self._row(domain, arm.label, target))
            return rows

        return self._kept(f"zero-shot-{domain}", identity, measure)

    def row(self, seed: int, domain: str, arm: Arm) -> Row:
        """Boost a domain and measure it, unless that was done before."""
        recipe = self.recipe(arm, seed)
        backbones = [self._teachers[arch] for arch in arm.teachers]
        images = cached_images(domain, self._work_dir / "images", self._sizes.n_images, seed)
        identity = [recipe.model_dump_json(), images.digest, self._student.fingerprint]
        identity += [backbone.fingerprint for backbone in backbones]
        name = f"{domain}-{seed}-{arm.label.replace(', ', '-').replace(' ', '-')}"

        def measure() -> list[Row]:
            out = self._work_dir / "bundles" / f"{name}-{short_digest(identity)}.safetensors"
            started_s = time.process_time()
            job = BoostJob(
                domain=domain,
                sources={domain: UnlabelledData(images, CLASS_NAMES)},
                out=out,
                checkpoint=out.with_suffix(".checkpoint"),
            )
            result = run_boost(job, recipe, self._student, backbones, _QUIET)
            cpu_s = time.process_time() - started_s
            model = PromptedClip(self._student)
            scores = stack_scores(model, model.load_stack(read_bundle_file(out)), self._pictures(domain))
            facts = {"seed": seed, "steps": result["steps"], "cpu_s": round(cpu_s, 1)}
            return [self._row(domain, arm.label, scores) | facts]

        return self._kept(name, identity, measure)[0]

    def _kept(self, name: str, identity: Sequence[str], measure: Callable[[], list[Row]]) -> list[Row]:
        """Rows from the work folder, or measured and kept there."""
        path = self._work_dir / "rows" / f"{name}-{short_digest([*identity, str(self._sizes)])}.json"
        if path.is_file():
            found: list[Row] = json.loads(path.read_text(encoding="utf-8"))
            return found
        rows = measure()
        write_atomic(path, json.dumps(rows).encode())
        return rows

    def _zero_shot(self, backbone: Backbone, domain: str) -> Tensor:
        """Scores of all classes for the test images: [N, K]."""
        model = PromptedClip(backbone)
        return stack_scores(model, model.plain_stack(domain, CLASS_NAMES, [TEMPLATE]), self._pictures(domain))

    def _row(self, domain: str, label: str, scores_NK: Tensor) -> Row:
        """Base, new and H in per cent; each half is classified among its own classes."""
        found = accuracy(scores_NK, self._pictures(domain).labels)
        rates = {"base": found.base, "new": found.new, "h": found.harmonic_mean}
        return {"domain": domain, "model": label} | {name: round(100 * rate, 1) for name, rate in rates.items()}

    def _pictures(self, domain: str) -> Pictures:
        if domain not in self._test:
            self._test[domain] = draw_series(TEST_SEED, self._sizes.n_test, restyle=SHIFTED[domain])
        return self._test[domain]
