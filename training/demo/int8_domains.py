"""Accuracy of int8 image features in every demo domain, against float32: plain, boosted, and with fitted heads.

Legend: N images, K classes, E joint width.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from prompted_clip.fit import fit_few_shot
from prompted_clip.model import PromptedClip
from prompted_clip.openvino_tower import OpenVinoTower
from prompted_clip.vision import ImageTower
from training.demo.evaluate import TEMPLATE, TEST_SEED
from training.demo.fit_domains import CHECK_SHOTS, encode
from training.demo.folders import LABELLED_SEED
from training.demo.render import draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import CLASS_NAMES, N_CLASSES

N_TEST: Final = 2000
N_LABELLED: Final = 40 * N_CLASSES

Row = dict[str, Any]


def measure_int8(
    bundles: Path, domains: Sequence[str], *, n_test: int = N_TEST, console: Console
) -> Iterator[list[Row]]:
    """Per domain, accuracy in per cent among all 80 classes of text features and fitted heads, plain and boosted.

    Heads are fitted to float32 features of 16 images per class; `float32` and `int8` are the features they classify.

    Yields:
        Four rows of a domain.

    Raises:
        BackendError: OpenVINO is not installed.
    """
    backbone = load_backbone("demo-student")
    towers = {"float32": ImageTower(backbone), "int8": OpenVinoTower(backbone, dtype="int8")}
    models = {dtype: PromptedClip(backbone, image_tower=tower) for dtype, tower in towers.items()}
    for domain in domains:
        rows = _measure_domain(models, bundles, domain, n_test)
        for row in rows:
            console.print(row, soft_wrap=True)
        yield rows


def _measure_domain(models: dict[str, PromptedClip], bundles: Path, domain: str, n_test: int) -> list[Row]:
    exact = models["float32"]
    test = draw_series(TEST_SEED, n_test, restyle=DOMAINS[domain])
    labelled = draw_series(LABELLED_SEED, N_LABELLED, restyle=DOMAINS[domain])
    boosted = exact.load_stack(read_bundle((bundles / f"{domain}.safetensors").read_bytes()))
    rows: list[Row] = []
    for name, stack in (("plain", exact.plain_stack(domain, CLASS_NAMES, [TEMPLATE])), ("boosted", boosted)):
        encoded = {dtype: encode(model, stack, test) for dtype, model in models.items()}
        shots = encode(exact, stack, labelled).sample(CHECK_SHOTS, seed=1)
        fit = fit_few_shot(shots.features_NE, shots.labels_N, shots.text_logits_NK)
        classes = {
            "text": {dtype: one.text_logits_NK.argmax(1) for dtype, one in encoded.items()},
            "fitted": {
                dtype: fit.logits(one.features_NE, one.text_logits_NK).argmax(1) for dtype, one in encoded.items()
            },
        }
        for head, found in classes.items():
            rows.append({"domain": domain, "stack": name, "head": head} | _compare(found, test.labels.numpy()))
    return rows


def write_results(rows: Sequence[Row], results: Path, *, n_test: int) -> None:
    """Write all rows as JSON."""
    results.parent.mkdir(parents=True, exist_ok=True)
    facts = {"n_test": n_test, "shots": CHECK_SHOTS, "rows": list(rows)}
    results.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def int8_table(results: Mapping[str, Any]) -> str:
    """Markdown of results as `write_results` writes them: a line per domain and stack."""
    lines = [
        "| domain | stack | text: float32 | int8 - float32 | equal | fitted: float32 | int8 - float32 | equal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    of_head = {(row["domain"], row["stack"], row["head"]): row for row in results["rows"]}
    for domain, stack in dict.fromkeys((row["domain"], row["stack"]) for row in results["rows"]):
        cells = [
            f"{row['float32']:.1f} | {row['change']:+.2f} ± {row['standard_error']:.2f} | {row['equal']:.1f}"
            for row in (of_head[domain, stack, head] for head in ("text", "fitted"))
        ]
        lines.append(f"| {domain} | {stack} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _compare(classes: dict[str, NDArray[np.int64]], labels_N: NDArray[np.int64]) -> Row:
    """Accuracy of both types, their difference with its standard error, and the share of equal classes, in per cent."""
    is_right = {dtype: (found_N == labels_N).astype(float) for dtype, found_N in classes.items()}
    change_N = is_right["int8"] - is_right["float32"]
    facts = {dtype: right_N.mean() for dtype, right_N in is_right.items()} | {
        "change": change_N.mean(),
        "standard_error": change_N.std() / len(change_N) ** 0.5,
        "equal": (classes["int8"] == classes["float32"]).mean(),
    }
    return {name: round(100 * float(value), 2) for name, value in facts.items()}
