"""Zero-shot accuracy of the demo models on clean images and in every domain, with open_clip's encoders.

The images come from a series that training does not use. Shapes: N images, K classes, E joint dimension.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import open_clip
import torch
from torch import Tensor

from training.demo.captions import tokenizer
from training.demo.models import create, normalise_pixels
from training.demo.render import draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import BASE_LABELS, CLASS_NAMES, HELD_OUT_LABELS, NEW_LABELS
from training.evaluation.metrics import harmonic_mean

TEST_SEED: Final = 900
TEMPLATE: Final = "a photo of a {}."
_BATCH: Final = 250


@dataclass(frozen=True)
class Accuracy:
    """Zero-shot accuracy.

    `every`, `held_out`: among all 80 classes, over all images or those of held-out pairs.
    `base`, `new`: images of one half of the classes, among that half, as in CoOp.
    """

    every: float
    held_out: float
    base: float
    new: float

    @property
    def harmonic_mean(self) -> float:
        """H of base and new."""
        return harmonic_mean(self.base, self.new)


@torch.inference_mode()
def class_features(model: open_clip.CLIP) -> Tensor:
    """Encode the 80 class captions: unit norm [K, E]."""
    tokens_KT = tokenizer()([TEMPLATE.format(name) for name in CLASS_NAMES])
    features_KE: Tensor = model.encode_text(tokens_KT, normalize=True)
    return features_KE


@torch.inference_mode()
def picture_features(model: open_clip.CLIP, pixels_NCHW: Tensor) -> Tensor:
    """Encode uint8 images: unit norm [N, E]."""
    batches = torch.split(pixels_NCHW, _BATCH)
    return torch.cat([model.encode_image(normalise_pixels(batch), normalize=True) for batch in batches])


def _share_right(scores_NK: Tensor, labels_N: Tensor, among: tuple[int, ...], of: tuple[int, ...]) -> float:
    """Accuracy of the images with labels `of`, among the classes `among`."""
    rows = torch.isin(labels_N, torch.tensor(of))
    classes = torch.tensor(among)
    guesses = classes[scores_NK[rows][:, classes].argmax(1)]
    return (guesses == labels_N[rows]).float().mean().item()


def accuracy(scores_NK: Tensor, labels_N: Tensor) -> Accuracy:
    """Compute accuracies from scores of all 80 classes, float [N, K], and labels, int64 [N]."""
    every = tuple(range(len(CLASS_NAMES)))
    return Accuracy(
        every=_share_right(scores_NK, labels_N, every, every),
        held_out=_share_right(scores_NK, labels_N, every, HELD_OUT_LABELS),
        base=_share_right(scores_NK, labels_N, BASE_LABELS, BASE_LABELS),
        new=_share_right(scores_NK, labels_N, NEW_LABELS, NEW_LABELS),
    )


def measure(model: open_clip.CLIP, domain: str, n_pictures: int = 2000, seed: int = TEST_SEED) -> Accuracy:
    """Evaluate zero-shot accuracy in one domain.

    Raises:
        KeyError: no such domain.
    """
    pictures = draw_series(seed, n_pictures, restyle=DOMAINS[domain])
    return accuracy(picture_features(model, pictures.pixels) @ class_features(model).T, pictures.labels)


def measure_all(weights: dict[str, Path], n_pictures: int = 2000) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluate models in every domain.

    Args:
        weights: exported weights by architecture.
        n_pictures: images per domain.

    Returns:
        accuracy by architecture, domain and measure.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    for arch, path in weights.items():
        model = create(arch, path).eval()
        table[arch] = {domain: asdict(measure(model, domain, n_pictures)) for domain in DOMAINS}
    return table
