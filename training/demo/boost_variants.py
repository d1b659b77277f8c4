"""Variants of boosting at equal cost: the same number of views.

Every run has its own images, drawn by its seed, so the deviation over seeds includes the choice of images. Finished
runs are kept in the work folder.
"""

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from torch import Tensor

from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.preprocess import normalize_pixels
from training.demo.boost_domains import RECIPE
from training.demo.distiller import Distilled, Domain, Variant, distil
from training.demo.evaluate import TEMPLATE, TEST_SEED
from training.demo.folders import DRAWN, FOLDER_TRAIN_SEED, save_picture
from training.demo.render import Pictures, draw_series
from training.demo.shifts import UNSEEN
from training.demo.world import CLASS_NAMES, PAIRS
from training.evaluation.rows import short_digest
from training.files import write_atomic
from training.prompted_backbone import PromptedBackbone
from training.rates import scale_rate
from training.recipe import SMALL_BOOST, BoostRecipe, read_recipe, validate_recipe
from training.scores import class_scores

SCREENED_IN: Final = "night"
DOMAINS: Final = (SCREENED_IN, *UNSEEN)
SEEDS: Final = (1, 2, 3)
N_CLASSES: Final = 20
N_IMAGES: Final = 320
"""Unlabelled images of a run."""
EPOCHS: Final = 8
N_TEST: Final = 1000
BASELINE: Final = "default for larger backbones"
_BATCH: Final = 250

Row = dict[str, Any]


def variants() -> list[Variant]:
    """The lines of the table; the first one is the default recipe."""
    demo = read_recipe(BoostRecipe, RECIPE).model_dump(exclude_unset=True, exclude={"epochs"})
    return [
        Variant(BASELINE, is_repeated=True),
        Variant('random text prompts (`text_init = ""`)', {"text_init": ""}),
        Variant("best of eight steps on a held-out tenth of the images", is_selected=True),
        Variant("`temperature = 2`", {"temperature": 2.0}),
        Variant("targets balanced over classes", is_balanced=True),
        Variant("80 class names instead of 20", is_wide=True),
        Variant("one target for all views of an image, from the whole image", targets="image"),
        Variant("one target for all views of an image, the mean of four views", targets="views"),
        Variant("moving average of the prompts, 0.99", average=0.99),
        Variant('`augmentation = "none"`', {"augmentation": "none"}),
        Variant("`boost.toml`, the recipe of the demo's bundles", demo),
        Variant("`temperature = 4`", {"temperature": 4.0}),
        Variant("`temperature = 8`", {"temperature": 8.0}),
        Variant('`temperature = 4`, `augmentation = "none"`', SMALL_BOOST, is_repeated=True),
        Variant("the same with balanced targets", SMALL_BOOST, is_balanced=True),
        Variant("the same with 80 class names", SMALL_BOOST, is_wide=True),
    ]


def recipe_of(variant: Variant, seed: int, student: Backbone) -> BoostRecipe:
    """The default recipe with the variant's values, for a backbone."""
    values = {"teacher_template": TEMPLATE, "epochs": EPOCHS, "seed": seed} | dict(variant.values)
    return scale_rate(validate_recipe(BoostRecipe, values), student, Console(quiet=True))


class VariantRuns:
    """Runs in one domain.

    Args:
        domain: a name of `DRAWN`.
        work_dir: folder for finished rows.
        folder: an empty folder for the images.
        n_images: unlabelled images of a run.
        n_test: test images.
    """

    def __init__(
        self, domain: str, work_dir: Path, folder: Path, *, n_images: int = N_IMAGES, n_test: int = N_TEST
    ) -> None:
        self._domain, self._work_dir, self._n_images = domain, work_dir, n_images
        self.student, self.teacher = load_backbone("demo-student"), load_backbone("demo-teacher")
        self._test = draw_series(TEST_SEED, n_test, pairs=PAIRS[:N_CLASSES], restyle=DRAWN[domain])
        self._drawn = draw_domain(domain, folder, n_images * len(SEEDS), N_CLASSES)

    def reference(self) -> Row:
        """Accuracy of the plain student and the teacher in per cent."""
        found = {}
        for name, backbone in (("student", self.student), ("teacher", self.teacher)):
            found[name] = self._accuracy(PromptedBackbone(backbone), TEMPLATE)
        return {"domain": self._domain} | found

    def row(self, variant: Variant, seed: int) -> Row:
        """Run a variant, unless its row exists."""
        recipe = recipe_of(variant, seed, self.student)
        path = self._work_dir / f"{self._domain}-{seed}-{self._digest(variant, recipe)}.json"
        if path.is_file():
            found: Row = json.loads(path.read_text(encoding="utf-8"))
            return found | {"variant": variant.label}
        started_s = time.process_time()
        result = distil(variant, recipe, self._data(seed), self.student, self.teacher)
        row = self._row(variant, recipe, seed, result) | {"cpu_s": round(time.process_time() - started_s, 1)}
        write_atomic(path, json.dumps(row).encode())
        return row

    def _row(self, variant: Variant, recipe: BoostRecipe, seed: int, result: Distilled) -> Row:
        return {
            "domain": self._domain,
            "variant": variant.label,
            "seed": seed,
            "accuracy": self._accuracy(result.model, recipe.template),
            "steps": result.n_steps,
            "batch_size": recipe.batch_size,
        }

    def _data(self, seed: int) -> Domain:
        own = slice((seed - 1) * self._n_images, seed * self._n_images)
        return replace(self._drawn, files=self._drawn.files[own], labels=self._drawn.labels[own])

    def _digest(self, variant: Variant, recipe: BoostRecipe) -> str:
        settings = [variant.targets, variant.is_balanced, variant.is_wide, variant.average, variant.is_selected]
        sizes = [self._n_images, len(self._test), self.student.fingerprint, self.teacher.fingerprint]
        return short_digest([recipe.model_dump_json(), *settings, *sizes])

    def _accuracy(self, model: PromptedBackbone, template: str) -> float:
        predicted = scores_of(model, self._drawn.class_names, template, self._test).argmax(1)
        return round(100 * (predicted == self._test.labels).float().mean().item(), 2)


def draw_domain(domain: str, folder: Path, n_images: int, n_classes: int) -> Domain:
    """Draw the images of `write_folders`, of the first classes only, with their labels."""
    pictures = draw_series(FOLDER_TRAIN_SEED, n_images, pairs=PAIRS[:n_classes], restyle=DRAWN[domain])
    files = [folder / f"{index:05d}.png" for index in range(n_images)]
    for index, path in enumerate(files):
        save_picture(pictures, index, path)
    return Domain(files, pictures.labels.tolist(), CLASS_NAMES[:n_classes], CLASS_NAMES[n_classes:])


@torch.no_grad()
def scores_of(model: PromptedBackbone, names: Sequence[str], template: str, pictures: Pictures) -> Tensor:
    """Class scores [N, K] of all pictures."""
    texts = model.encode_text(model.tokenize(names, template, n_prompts=0))
    blocks = torch.split(pictures.pixels, _BATCH)
    features = [model.encode_images(normalize_pixels(block, model.backbone.preprocess)) for block in blocks]
    return class_scores(model.logit_scale, torch.cat(features), texts)


def run_variants(
    domains: Sequence[str], seeds: Sequence[int], work_dir: Path, on_row: Callable[[Row], None]
) -> tuple[list[Row], list[Row]]:
    """Run every variant in the first domain with the first seed, and the repeated ones in all domains with all seeds.

    Args:
        domains: names of `DRAWN`.
        seeds: some of `SEEDS`.
        work_dir: folder for finished rows.
        on_row: called with each row.

    Returns:
        The accuracy of student and teacher in each domain, and the rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = {domain: VariantRuns(domain, work_dir, Path(folder) / domain) for domain in domains}
        rows = []
        for variant, domain, seed in plan(domains, seeds):
            rows.append(runs[domain].row(variant, seed))
            on_row(rows[-1])
        return [run.reference() for run in runs.values()], rows


def plan(domains: Sequence[str], seeds: Sequence[int]) -> list[tuple[Variant, str, int]]:
    """The runs of `run_variants`: variant, domain and seed."""
    screening = [(variant, domains[0], seeds[0]) for variant in variants()]
    repeated = [variant for variant in variants() if variant.is_repeated]
    every = itertools.product(seeds, domains, repeated)
    return screening + [(v, domain, seed) for seed, domain, v in every if (domain, seed) != (domains[0], seeds[0])]
