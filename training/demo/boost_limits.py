"""What limits boosting in one domain: the teacher, the temperature, the number of images or of steps.

All runs use the recipe and class names of the demo's boosting bundles, with fewer images and epochs. Each run changes
one thing; finished runs are kept in the work folder, and interrupted ones resume.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from training.demo.boost_domains import N_TEST, N_UNLABELLED, RECIPE
from training.demo.boost_variants import draw_domain, scores_of
from training.demo.distiller import Targets, Variant, distil
from training.demo.evaluate import TEMPLATE, TEST_SEED, Accuracy, accuracy
from training.demo.folders import DRAWN
from training.demo.render import draw_series
from training.demo.world import CLASS_NAMES
from training.evaluation.rows import short_digest
from training.files import write_atomic
from training.loop import CheckpointConfig
from training.prompted_backbone import PromptedBackbone, boosted_backbone
from training.recipe import BoostRecipe, read_recipe

DOMAIN: Final = "night"
N_IMAGES: Final = 1000
EPOCHS: Final = 12

Row = dict[str, Any]


@dataclass(frozen=True)
class Limit:
    """A run that lifts one limit.

    Attributes:
        label: its line in the table.
        n_images: training images.
        targets: see `Variant`.
        values: recipe values that differ from `boost.toml`.
    """

    label: str
    n_images: int = N_IMAGES
    targets: Targets = "image"
    values: Mapping[str, Any] = field(default_factory=dict)


LIMITS: Final = (
    Limit("boosting"),
    Limit("the true labels instead of the teacher", targets="labels"),
    Limit("`temperature = 4`", values={"temperature": 4.0}),
    Limit("four times the images, as many steps", n_images=4 * N_IMAGES, values={"epochs": EPOCHS // 4}),
    Limit("twice the steps", values={"epochs": 2 * EPOCHS}),
)


class LimitRuns:
    """Runs in one domain.

    Args:
        domain: a name of `DRAWN`.
        bundle: the domain's boosting bundle.
        work_dir: folder for finished rows and checkpoints.
        n_test: test images.
    """

    def __init__(self, domain: str, bundle: Path, work_dir: Path, *, n_test: int = N_TEST) -> None:
        self._domain, self._bundle, self._work_dir = domain, bundle, work_dir
        self.student, self.teacher = load_backbone("demo-student"), load_backbone("demo-teacher")
        self._test = draw_series(TEST_SEED, n_test, restyle=DRAWN[domain])

    def references(self) -> list[Row]:
        """Rows of the plain student, the teacher and the boosting bundle."""
        boosted = boosted_backbone(self.student, read_bundle(self._bundle.read_bytes()))
        recipe = read_recipe(BoostRecipe, RECIPE)
        facts = {"n_images": N_UNLABELLED, "steps": recipe.epochs * N_UNLABELLED // recipe.batch_size}
        return [
            self._row("student", self._accuracy(PromptedBackbone(self.student), TEMPLATE)),
            self._row("teacher", self._accuracy(PromptedBackbone(self.teacher), TEMPLATE)),
            self._row("boosting bundle of the demo", self._accuracy(boosted, recipe.template)) | facts,
        ]

    def row(self, limit: Limit) -> Row:
        """Run one, unless its row exists."""
        recipe = self._recipe(limit)
        fingerprints = [self.student.fingerprint, self.teacher.fingerprint]
        sizes = [limit.n_images, len(self._test)]
        digest = short_digest([self._domain, recipe.model_dump_json(), limit.targets, *sizes, *fingerprints])
        path = self._work_dir / f"{self._domain}-limit-{digest}.json"
        if path.is_file():
            found: Row = json.loads(path.read_text(encoding="utf-8"))
            return found | {"run": limit.label}
        checkpoint = CheckpointConfig(path.with_suffix(".checkpoint"), {"run": digest})
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            domain = draw_domain(self._domain, Path(folder), limit.n_images, len(CLASS_NAMES))
            variant = Variant(limit.label, targets=limit.targets)
            result = distil(variant, recipe, domain, self.student, self.teacher, checkpoint)
        row = self._row(limit.label, self._accuracy(result.model, recipe.template))
        row |= {"n_images": limit.n_images, "steps": result.n_steps}
        write_atomic(path, json.dumps(row).encode())
        checkpoint.path.unlink(missing_ok=True)
        return row

    def _recipe(self, limit: Limit) -> BoostRecipe:
        values = {"epochs": EPOCHS} | dict(limit.values)
        return read_recipe(BoostRecipe, RECIPE, [f"{key}={json.dumps(value)}" for key, value in values.items()])

    def _accuracy(self, model: PromptedBackbone, template: str) -> Accuracy:
        return accuracy(scores_of(model, CLASS_NAMES, template, self._test), self._test.labels)

    def _row(self, run: str, measured: Accuracy) -> Row:
        rates = asdict(measured) | {"h": measured.harmonic_mean}
        return {"domain": self._domain, "run": run} | {name: round(100 * rate, 1) for name, rate in rates.items()}
