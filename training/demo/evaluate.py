"""Zero-shot accuracy of the demo models, clean and in every domain, through open_clip's own text and image encoders.

The pictures come from a series that no pre-training draws from. Shapes: N pictures, K classes, E joint dimension.
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

TEST_SEED: Final = 900
TEMPLATE: Final = "a photo of a {}."
_BATCH: Final = 250


@dataclass(frozen=True)
class Accuracy:
    """Shares of pictures given the right class.

    `every`, `held_out`: against all 80 classes, over all pictures or those of pairs not seen in pre-training.
    `base`, `new`: CoOp's way, pictures of one half of the classes against that half.
    """

    every: float
    held_out: float
    base: float
    new: float

    @property
    def harmonic_mean(self) -> float:
        """H of base and new."""
        return 2 * self.base * self.new / max(self.base + self.new, 1e-9)


@torch.inference_mode()
def class_features(model: open_clip.CLIP) -> Tensor:
    """Encode the 80 class captions: unit norm [K, E]."""
    tokens_KT = tokenizer()([TEMPLATE.format(name) for name in CLASS_NAMES])
    features_KE: Tensor = model.encode_text(tokens_KT, normalize=True)
    return features_KE


@torch.inference_mode()
def picture_features(model: open_clip.CLIP, pixels_NCHW: Tensor) -> Tensor:
    """Encode uint8 pictures: unit norm [N, E]."""
    batches = torch.split(pixels_NCHW, _BATCH)
    return torch.cat([model.encode_image(normalise_pixels(batch), normalize=True) for batch in batches])


def _share_right(scores_NK: Tensor, labels_N: Tensor, among: tuple[int, ...], of: tuple[int, ...]) -> float:
    """Score the pictures labelled `of` against the classes `among`."""
    rows = torch.isin(labels_N, torch.tensor(of))
    classes = torch.tensor(among)
    guesses = classes[scores_NK[rows][:, classes].argmax(1)]
    return (guesses == labels_N[rows]).float().mean().item()


def accuracy(scores_NK: Tensor, labels_N: Tensor) -> Accuracy:
    """Judge scores of pictures against all 80 classes in label order, float [N, K], by their true labels, int64 [N]."""
    every = tuple(range(len(CLASS_NAMES)))
    return Accuracy(
        every=_share_right(scores_NK, labels_N, every, every),
        held_out=_share_right(scores_NK, labels_N, every, HELD_OUT_LABELS),
        base=_share_right(scores_NK, labels_N, BASE_LABELS, BASE_LABELS),
        new=_share_right(scores_NK, labels_N, NEW_LABELS, NEW_LABELS),
    )


def measure(model: open_clip.CLIP, domain: str, n_pictures: int = 2000, seed: int = TEST_SEED) -> Accuracy:
    """Measure zero-shot accuracy in one domain.

    Raises:
        KeyError: no such domain.
    """
    pictures = draw_series(seed, n_pictures, restyle=DOMAINS[domain])
    return accuracy(picture_features(model, pictures.pixels) @ class_features(model).T, pictures.labels)


def measure_all(weights: dict[str, Path], n_pictures: int = 2000) -> dict[str, dict[str, dict[str, float]]]:
    """Measure models in every domain.

    Args:
        weights: exported weights by architecture.
        n_pictures: per domain.

    Returns:
        accuracy by architecture, domain and measure.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    for arch, path in weights.items():
        model = create(arch, path).eval()
        table[arch] = {domain: asdict(measure(model, domain, n_pictures)) for domain in DOMAINS}
    return table
