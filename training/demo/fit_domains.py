"""Fits few-shot heads in every demo domain, with and without boosting, and evaluates them on unseen images.

Legend: N images, K classes, E joint width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from prompted_clip.calibration import RATES, softmax
from prompted_clip.features import Floats, Ints
from prompted_clip.few_shot import AUTO_METHODS, FEW_SHOT_METHODS
from prompted_clip.fit import FewShotFit, fit_few_shot
from prompted_clip.fit_report import AUTO, suspects
from prompted_clip.model import PromptedClip
from prompted_clip.semi_supervised import UnlabelledImages
from prompted_clip.stack import PromptStack
from training.demo.boost_domains import N_UNLABELLED
from training.demo.domain_pool import map_domains
from training.demo.evaluate import TEMPLATE, TEST_SEED
from training.demo.folders import FOLDER_TRAIN_SEED, LABELLED_SEED
from training.demo.render import Pictures, draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import BASE_LABELS, CLASS_NAMES, N_CLASSES, NEW_LABELS
from training.evaluation.metrics import harmonic_mean
from training.evaluation.rows import ZERO_SHOT

AUTO_UNLABELLED: Final = "auto-unlabelled"
"""`auto` with unlabelled images."""
METHODS: Final = (*FEW_SHOT_METHODS, AUTO, AUTO_UNLABELLED)
SHOTS: Final = (1, 2, 4, 8, 16)
SEEDS: Final = (1, 2, 3)
N_LABELLED: Final = 40 * N_CLASSES
"""Labelled images to sample the shots from."""
N_TEST: Final = 2000
CHECK_SHOTS: Final = max(SHOTS)
CHECK_SEEDS: Final = tuple(range(1, 11))
N_CHECK_LABELLED: Final = 60 * N_CLASSES
N_CHECK_TEST: Final = 8000
FLIPPED_SHARE: Final = 0.05
CHECKS: Final = ("suspects_found", "suspects_good", *(f"abstained_{rate:g}" for rate in RATES))
_BATCH: Final = 250

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Features, labels and logits of the text features, of all 80 classes."""

    features_NE: Floats
    labels_N: Ints
    text_logits_NK: Floats

    def among(self, classes: Sequence[int]) -> "Encoded":
        """The images of consecutive classes, with labels from 0."""
        is_own_N = np.isin(self.labels_N, classes)
        own_NK = self.text_logits_NK[is_own_N][:, classes]
        return Encoded(self.features_NE[is_own_N], self.labels_N[is_own_N] - classes[0], own_NK)

    def sample(self, shots: int, seed: int) -> "Encoded":
        """`shots` images per class, without replacement."""
        rng = np.random.default_rng(seed)
        own = [np.flatnonzero(self.labels_N == label) for label in np.unique(self.labels_N)]
        rows = np.concatenate([rng.choice(rows, shots, replace=False) for rows in own])
        return Encoded(self.features_NE[rows], self.labels_N[rows], self.text_logits_NK[rows])


def fit_domain(domain: str, bundles: Path) -> tuple[list[Row], list[Row]]:
    """Fit every method, number of shots and seed in one domain, and check suspects and thresholds.

    The unlabelled images are those that boosting was trained on: of all classes, also for fits of the base classes.

    Args:
        domain: a name of `shifts.DOMAINS`.
        bundles: folder of the boosting bundles, `<domain>.safetensors`.

    Returns:
        Rows with `domain`, `method` (`zero-shot` for the text features alone), `boosted`, `shots`, `seed`, and `base`,
        `new`, `h` and `all` in per cent; and rows with `domain`, `seed` and `CHECKS` of `auto` with boosting and
        `CHECK_SHOTS` images of each base class.
    """
    model = PromptedClip(load_backbone("demo-student"))
    labelled = draw_series(LABELLED_SEED, N_LABELLED, restyle=DOMAINS[domain])
    unlabelled = draw_series(FOLDER_TRAIN_SEED, N_UNLABELLED, restyle=DOMAINS[domain])
    test = draw_series(TEST_SEED, N_TEST, restyle=DOMAINS[domain])
    boosted = model.load_stack(read_bundle((bundles / f"{domain}.safetensors").read_bytes()))
    rows: list[Row] = []
    for stack in (model.plain_stack(domain, CLASS_NAMES, [TEMPLATE]), boosted):
        sets = [encode(model, stack, pictures) for pictures in (labelled, unlabelled, test)]
        rows += [{"domain": domain, "boosted": stack is boosted} | row for row in _fit_all(*sets)]
    examples = draw_series(LABELLED_SEED, N_CHECK_LABELLED, start=N_LABELLED, restyle=DOMAINS[domain])
    unseen = draw_series(TEST_SEED, N_CHECK_TEST, start=N_TEST, restyle=DOMAINS[domain])
    pool, new = (encode(model, boosted, pictures).among(BASE_LABELS) for pictures in (examples, unseen))
    checks = [{"domain": domain, "seed": seed} | _check(pool, new, seed) for seed in CHECK_SEEDS]
    return rows, checks


def fit_domains(bundles: Path, results: Path, domains: Sequence[str], *, jobs: int, console: Console) -> None:
    """Run `fit_domain` for several domains in parallel and write all rows as JSON."""
    found = dict(
        map_domains(partial(fit_domain, bundles=bundles), domains, jobs=jobs, title="fitting", console=console)
    )
    facts = {
        "n_labelled": N_LABELLED, "n_unlabelled": N_UNLABELLED, "n_test": N_TEST, "seeds": list(SEEDS),
        "n_check_labelled": N_CHECK_LABELLED, "n_check_test": N_CHECK_TEST, "check_seeds": list(CHECK_SEEDS),
        "flipped_share": FLIPPED_SHARE,
        "rows": [row for domain in domains for row in found[domain][0]],
        "checks": [row for domain in domains for row in found[domain][1]],
    }  # fmt: skip
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def encode(model: PromptedClip, stack: PromptStack, pictures: Pictures) -> Encoded:
    """Features and text logits of pictures under a stack's prompts."""
    assert stack.text_features is not None  # noqa: S101  neither stack has a conditional head
    batches = torch.split(pictures.pixels, _BATCH)
    units = [model.encode_images(batch, [stack] * len(batch)).unit_BE.numpy() for batch in batches]
    features_NE = np.concatenate(units).astype(np.float64)
    text_KE = stack.text_features.double().numpy()
    return Encoded(features_NE, pictures.labels.numpy(), stack.logit_scale * features_NE @ text_KE.T)


def _fit_all(labelled: Encoded, unlabelled: Encoded, test: Encoded) -> list[Row]:
    """The text features alone, then every number of shots, seed and method."""
    base_test, new = test.among(BASE_LABELS), _accuracy(test.among(NEW_LABELS))
    base_unlabelled = UnlabelledImages(unlabelled.features_NE, unlabelled.text_logits_NK[:, BASE_LABELS])
    all_unlabelled = UnlabelledImages(unlabelled.features_NE, unlabelled.text_logits_NK)
    rows = [_row(ZERO_SHOT, 0, None, _accuracy(base_test), new, _accuracy(test))]
    for shots, seed in ((shots, seed) for shots in SHOTS for seed in SEEDS):
        base_images, all_images = labelled.among(BASE_LABELS).sample(shots, seed), labelled.sample(shots, seed)
        for name in METHODS:
            is_used = name == AUTO_UNLABELLED
            of_base = _fit(base_images, name, base_unlabelled if is_used else None)
            of_all = _fit(all_images, name, all_unlabelled if is_used else None)
            rows.append(_row(name, shots, seed, _accuracy(base_test, of_base), new, _accuracy(test, of_all)))
    return rows


def _fit(images: Encoded, name: str, unlabelled: UnlabelledImages | None = None) -> FewShotFit:
    methods = {name: FEW_SHOT_METHODS[name]} if name in FEW_SHOT_METHODS else AUTO_METHODS
    return fit_few_shot(images.features_NE, images.labels_N, images.text_logits_NK, methods, unlabelled)


def _logits(images: Encoded, fit: FewShotFit | None) -> Floats:
    return images.text_logits_NK if fit is None else fit.logits(images.features_NE, images.text_logits_NK)


def _accuracy(images: Encoded, fit: FewShotFit | None = None) -> float:
    """In per cent."""
    return 100 * float((_logits(images, fit).argmax(axis=1) == images.labels_N).mean())


def _row(method: str, shots: int, seed: int | None, base: float, new: float, every: float) -> Row:
    rates = {"base": base, "new": new, "h": harmonic_mean(base, new), "all": every}
    return {"method": method, "shots": shots, "seed": seed} | {name: round(rate, 2) for name, rate in rates.items()}


def _check(pool: Encoded, new: Encoded, seed: int) -> Row:
    """In per cent: suspects among changed and among correct labels, and abstentions on new images."""
    images = pool.sample(CHECK_SHOTS, seed)
    rng = np.random.default_rng(seed)
    n_classes = images.text_logits_NK.shape[1]
    is_flipped_N: NDArray[np.bool_] = rng.random(len(images.labels_N)) < FLIPPED_SHARE
    shift_N = np.where(is_flipped_N, rng.integers(1, n_classes, len(is_flipped_N)), 0)
    changed_N = (images.labels_N + shift_N) % n_classes
    changed = _fit(replace(images, labels_N=changed_N), AUTO)
    is_suspect_N = np.zeros(len(changed_N), dtype=np.bool_)
    is_suspect_N[suspects(changed.probabilities(), changed_N)] = True
    fit = _fit(images, AUTO)
    best_N = softmax(_logits(new, fit)).max(axis=1)
    rates = [is_suspect_N[is_flipped_N].mean(), is_suspect_N[~is_flipped_N].mean()]
    rates += [(best_N < threshold).mean() for threshold in fit.thresholds().values()]
    return {name: round(100 * float(rate), 2) for name, rate in zip(CHECKS, rates, strict=True)}
