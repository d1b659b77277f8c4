"""Measures the default recipes of `caspl boost` and `caspl adapt` on domains that were not used to choose them.

Boosting has the defaults for ViT-B/16, with a scaled rate; `boost_variants` measures those for small backbones.

Each run holds out a tenth of the images as the commands do. The rows compare accuracy on other images, which neither
training nor selection uses.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import open_clip
from rich.console import Console

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.stack import PromptStack
from training.adapt_run import AdaptJob, run_adapt
from training.adapting.methods import METHODS
from training.boost_run import BoostJob, run_boost
from training.data.few_shot import few_shot
from training.data.folder_per_class import read_class_folders
from training.data.hold_out import hold_out_per_class
from training.demo.folders import write_class_folders
from training.demo.shifts import UNSEEN
from training.evaluation.metrics import accuracy
from training.evaluation.predict import Predictor
from training.files import read_bundle_file
from training.prompted_backbone import boosted_backbone
from training.rates import scale_rate
from training.recipe import BoostRecipe, Recipe
from training.unlabelled import unlabelled_data

HOLDOUT: Final = 0.1
SHOTS: Final = 16
B16_SHAPED: Final = "ViT-B-16-64px"
"""ViT-B/16 for images of 64 px, the size of the demo teacher's; its weights are random."""
_B16_CONFIG: Final = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 64, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}

Row = dict[str, Any]


class DefaultRuns:
    """Runs with default recipes on one backbone and one drawn domain.

    Args:
        backbone: the student.
        domain: name of a drawn domain.
        folder: an empty folder for images and bundles.
        n_images: training images; methods use `SHOTS` of them per class.
        n_test: images to measure accuracy on.
        n_classes: the first classes of the demo world.
        console: shows progress.

    Attributes:
        rows: finished runs: `backbone`, `domain`, `run` (`boost` or a method), `on` (`plain` or `boosted`), accuracy
            `before` and `after` on test images in per cent, `learning_rate`, `best_step`, `steps`, `cpu_minutes`.
    """

    def __init__(
        self,
        backbone: Backbone,
        domain: str,
        folder: Path,
        *,
        n_images: int,
        n_test: int,
        n_classes: int,
        console: Console,
    ) -> None:
        self.rows: list[Row] = []
        write_class_folders(domain, folder / "images", n_train=n_images, n_test=n_test, n_classes=n_classes)
        self._dataset = read_class_folders(folder / "images")
        self._backbone, self._domain, self._folder, self._console = backbone, domain, folder, console
        self._predictor = Predictor(backbone)

    def boost(self, teacher: Backbone) -> Bundle:
        """Boost the plain backbone."""
        recipe = scale_rate(BoostRecipe(teacher_template=self._dataset.template), self._backbone, self._console)
        job = BoostJob(
            domain=self._domain,
            sources={self._domain: unlabelled_data(self._dataset)},
            out=self._folder / "boost.safetensors",
            checkpoint=self._folder / "boost.checkpoint",
            holdout=HOLDOUT,
            keep_worse=True,
        )
        started_s = time.process_time()
        result = run_boost(job, recipe, self._backbone, [teacher], self._console)
        self._add("boost", None, recipe, result, time.process_time() - started_s)
        return read_bundle_file(job.out)

    def adapt(self, method: str, boost: Bundle) -> None:
        """Adapt the boosted backbone."""
        recipe = scale_rate(METHODS[method].recipe(), self._backbone, self._console)
        dataset = few_shot(hold_out_per_class(self._dataset, HOLDOUT, recipe.seed), SHOTS, seed=recipe.seed)
        out = self._folder / f"{method}.safetensors"
        job = AdaptJob(self._domain, dataset, out, out.with_suffix(".checkpoint"), select=True, keep_worse=True)
        started_s = time.process_time()
        result = run_adapt(job, method, recipe, boosted_backbone(self._backbone, boost), self._console)
        self._add(method, boost, recipe, result, time.process_time() - started_s)

    def _add(self, run: str, base: Bundle | None, recipe: Recipe, result: Mapping[str, Any], cpu_s: float) -> None:
        model = self._predictor.model
        before = (
            model.plain_stack(self._domain, self._dataset.class_names, [self._dataset.template])
            if base is None
            else model.load_stack(base)
        )
        row = {
            "backbone": self._backbone.arch,
            "domain": self._domain,
            "run": run,
            "on": "plain" if base is None else "boosted",
            "before": self._accuracy(before),
            "after": self._accuracy(model.load_stack(read_bundle_file(Path(result["bundle"])))),
            "learning_rate": float(f"{recipe.learning_rate:.3g}"),
            "best_step": result["best_step"],
            "steps": result["steps"],
            "cpu_minutes": round(cpu_s / 60, 1),
        }
        self._console.print(json.dumps(row), markup=False, highlight=False, soft_wrap=True)
        self.rows.append(row)

    def _accuracy(self, stack: PromptStack) -> float:
        predictions = self._predictor.predict(stack, self._dataset, "test")
        return round(accuracy(predictions.labels_N, predictions.named_N), 1)


def run_defaults(methods: Sequence[str], console: Console) -> Iterator[list[Row]]:
    """Boost the demo student in the unseen domains and a backbone of ViT-B/16's size in one, then adapt in one.

    Args:
        methods: run on the demo student boosted for *dusk*.
        console: shows progress.

    Yields:
        The rows so far, after each run.
    """
    teacher = load_backbone("demo-teacher")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        size = {"n_images": 800, "n_test": 1000, "n_classes": 20}
        student = load_backbone("demo-student")
        dusk, sepia = (DefaultRuns(student, domain, root / domain, **size, console=console) for domain in UNSEEN)
        bundle = dusk.boost(teacher)
        yield dusk.rows
        sepia.boost(teacher)
        yield dusk.rows + sepia.rows
        large = DefaultRuns(
            _b16_shaped(root), "dusk", root / "large", n_images=40, n_test=200, n_classes=4, console=console
        )
        large.boost(teacher)
        yield (boosted := dusk.rows + sepia.rows + large.rows)
        for method in methods:
            dusk.adapt(method, bundle)
            yield [*boosted, *dusk.rows[1:]]


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| backbone | domain | run | on | before | after | learning rate | best step | CPU minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['backbone']} | {row['domain']} | {row['run']} | {row['on']} | {row['before']:.1f} | "
        f"**{row['after']:.1f}** | {row['learning_rate']:.2g} | {row['best_step']} of {row['steps']} | "
        f"{row['cpu_minutes']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _b16_shaped(folder: Path) -> Backbone:
    config = folder / f"{B16_SHAPED}.json"
    config.write_text(json.dumps(_B16_CONFIG))
    open_clip.add_model_config(config)
    return load_backbone(B16_SHAPED, random_seed=0)
