"""Accuracy of a boosted student with random tokens before its boosting tokens.

Text tokens of an adapting method precede the boosting tokens and shift them and the class name. This measures how many
tokens a recipe can add.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch

from prompted_clip.preprocess import normalize_pixels
from training.demo.evaluate import TEST_SEED, accuracy
from training.demo.render import draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import CLASS_NAMES
from training.initial_prompts import random_prompts
from training.prompted_backbone import load_prompted_backbone
from training.scores import class_scores

N_TEST: Final = 2000
_BATCH: Final = 250


@torch.inference_mode()
def crowding(domain: str, bundles: Path, counts: Sequence[int]) -> dict[int, dict[str, float]]:
    """Base and new accuracy of the boosted student in per cent, by number of random tokens.

    Args:
        domain: a name of `shifts.DOMAINS`.
        bundles: folder of the boosting bundles, `<domain>.safetensors`.
        counts: numbers of tokens, 0 for none.
    """
    base_model = load_prompted_backbone(
        "demo-student", None, bundles / f"{domain}.safetensors", is_random=False, device="cpu"
    )
    backbone, template = base_model.backbone, base_model.template or "{}."
    pictures = draw_series(TEST_SEED, N_TEST, restyle=DOMAINS[domain])
    batches = torch.split(pictures.pixels, _BATCH)
    features = torch.cat([base_model.encode_images(normalize_pixels(b, backbone.preprocess)) for b in batches])
    found = {}
    for count in counts:
        tokens = base_model.tokenize(CLASS_NAMES, template, n_prompts=count)
        added = random_prompts(1, count, backbone.text_width, torch.Generator().manual_seed(0))
        texts = base_model.encode_text(tokens, added if count else None)
        measured = asdict(accuracy(class_scores(base_model.logit_scale, features, texts), pictures.labels))
        found[count] = {half: round(100 * measured[half], 1) for half in ("base", "new")}
    return found
