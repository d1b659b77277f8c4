"""Fits few-shot heads in every boosted demo domain and evaluates them on unseen images.

Legend: N images, K classes, E joint width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from prompted_clip.few_shot import AUTO_METHODS, FEW_SHOT_METHODS, Floats, Ints
from prompted_clip.fit import RATES, FewShotFit, fit_few_shot, softmax
from prompted_clip.fit_report import suspects
from prompted_clip.model import PromptedClip
from training.demo.domain_pool import map_domains
from training.demo.evaluate import TEST_SEED
from training.demo.folders import LABELLED_SEED
from training.demo.render import Pictures, draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import BASE_LABELS, N_CLASSES, NEW_LABELS
from training.evaluation.metrics import harmonic_mean, spread

ZERO_SHOT: Final = "zero-shot"
METHODS: Final = {name: {name: method} for name, method in FEW_SHOT_METHODS.items()} | {"auto": dict(AUTO_METHODS)}
SHOTS: Final = (1, 2, 4, 8, 16)
SEEDS: Final = (1, 2, 3)
N_LABELLED: Final = 40 * N_CLASSES
"""Labelled images to sample the shots from."""
N_TEST: Final = 2000
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


def fit_domain(domain: str, bundles: Path) -> list[Row]:
    """Fit every method, number of shots and seed in one domain.

    Args:
        domain: a name of `shifts.DOMAINS`.
        bundles: folder of the boosting bundles, `<domain>.safetensors`.

    Returns:
        Rows with `domain`, `method` (`zero-shot` for boosting alone), `shots`, `seed`, and `base`, `new`, `h` and `all`
        in per cent; those of `auto` with 16 shots also with `CHECKS`, over the base classes.
    """
    model = PromptedClip(load_backbone("demo-student"))
    data = (bundles / f"{domain}.safetensors").read_bytes()
    series = ((LABELLED_SEED, N_LABELLED), (TEST_SEED, N_TEST))
    labelled, test = (_encode(model, data, draw_series(seed, n, restyle=DOMAINS[domain])) for seed, n in series)
    new = _accuracy(test.among(NEW_LABELS))
    rows = [_row(domain, ZERO_SHOT, 0, None, _accuracy(test.among(BASE_LABELS)), new, _accuracy(test))]
    for shots, seed in ((shots, seed) for shots in SHOTS for seed in SEEDS):
        base_images, all_images = labelled.among(BASE_LABELS).sample(shots, seed), labelled.sample(shots, seed)
        for name, methods in METHODS.items():
            of_base, of_all = (
                fit_few_shot(images.features_NE, images.labels_N, images.text_logits_NK, methods)
                for images in (base_images, all_images)
            )
            rates = _accuracy(test.among(BASE_LABELS), of_base), new, _accuracy(test, of_all)
            row = _row(domain, name, shots, seed, *rates)
            if name == "auto" and shots == max(SHOTS):
                row |= _checks(of_base, base_images, test.among(BASE_LABELS), seed)
            rows.append(row)
    return rows


def fit_all(bundles: Path, results: Path, domains: Sequence[str], *, jobs: int, console: Console) -> list[Row]:
    """Run `fit_domain` for several domains in parallel and write all rows as JSON."""
    found = dict(
        map_domains(partial(fit_domain, bundles=bundles), domains, jobs=jobs, title="fitting", console=console)
    )
    rows = [row for domain in domains for row in found[domain]]
    facts = {"n_labelled": N_LABELLED, "n_test": N_TEST, "seeds": list(SEEDS), "flipped_share": FLIPPED_SHARE}
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Base accuracy by method and shots, mean over domains and seeds; then H and all classes with the most shots."""
    header = [*(f"{shots}" for shots in SHOTS), f"H, {max(SHOTS)}", f"all 80 classes, {max(SHOTS)}"]
    lines = [f"| images per class | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    cells = [_mean(rows, ZERO_SHOT, 0, measure) for measure in (*["base"] * len(SHOTS), "h", "all")]
    lines.append(f"| text features | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    for method in METHODS:
        cells = [_mean(rows, method, shots, "base") for shots in SHOTS]
        cells += [_mean(rows, method, max(SHOTS), measure) for measure in ("h", "all")]
        lines.append(f"| `{method}` | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def checks_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """`CHECKS` by domain, mean over seeds, and over all domains."""
    checked = [row for row in rows if CHECKS[0] in row]
    names = ["changed labels found", "correct labels suspected", *(f"abstained, {100 * rate:g} %" for rate in RATES)]
    lines = [f"| domain | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for domain in [*dict.fromkeys(row["domain"] for row in checked), "mean"]:
        own = [row for row in checked if domain in {row["domain"], "mean"}]
        means = [spread([row[check] for row in own]).mean for check in CHECKS]
        lines.append(f"| {domain} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join(lines)


@torch.inference_mode()
def _encode(model: PromptedClip, data: bytes, pictures: Pictures) -> Encoded:
    bundle = read_bundle(data)
    stack = model.load_stack(bundle)
    batches = torch.split(pictures.pixels, _BATCH)
    units = [model.encode_images(batch, [stack] * len(batch)).unit_BE.numpy() for batch in batches]
    features_NE = np.concatenate(units).astype(np.float64)
    text_KE = bundle.tensors["text.features"].astype(np.float64)
    return Encoded(features_NE, pictures.labels.numpy(), stack.logit_scale * features_NE @ text_KE.T)


def _logits(images: Encoded, fit: FewShotFit | None) -> Floats:
    return images.text_logits_NK if fit is None else fit.logits(images.features_NE, images.text_logits_NK)


def _accuracy(images: Encoded, fit: FewShotFit | None = None) -> float:
    """In per cent."""
    return 100 * float((_logits(images, fit).argmax(axis=1) == images.labels_N).mean())


def _row(domain: str, method: str, shots: int, seed: int | None, base: float, new: float, every: float) -> Row:
    rates = {"base": base, "new": new, "h": harmonic_mean(base, new), "all": every}
    facts = {"domain": domain, "method": method, "shots": shots, "seed": seed}
    return facts | {name: round(rate, 2) for name, rate in rates.items()}


def _checks(fit: FewShotFit, images: Encoded, test: Encoded, seed: int) -> Row:
    """In per cent: suspects among labels that were changed at random and among the others; abstentions on the test."""
    rng = np.random.default_rng(seed)
    n_classes = images.text_logits_NK.shape[1]
    is_flipped_N: NDArray[np.bool_] = rng.random(len(images.labels_N)) < FLIPPED_SHARE
    shift_N = np.where(is_flipped_N, rng.integers(1, n_classes, len(is_flipped_N)), 0)
    changed_N = (images.labels_N + shift_N) % n_classes
    changed = fit_few_shot(images.features_NE, changed_N, images.text_logits_NK)
    is_suspect_N = np.zeros(len(changed_N), dtype=np.bool_)
    is_suspect_N[suspects(changed.probabilities(), changed_N)] = True
    best_N = softmax(_logits(test, fit)).max(axis=1)
    rates = [is_suspect_N[is_flipped_N].mean(), is_suspect_N[~is_flipped_N].mean()]
    rates += [(best_N < threshold).mean() for threshold in fit.thresholds().values()]
    return {name: round(100 * float(rate), 2) for name, rate in zip(CHECKS, rates, strict=True)}


def _mean(rows: Sequence[Mapping[str, Any]], method: str, shots: int, measure: str) -> float:
    return spread([row[measure] for row in rows if (row["method"], row["shots"]) == (method, shots)]).mean
