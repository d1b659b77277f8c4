"""What every peer answers with: open_clip's own model and transform, random weights, class features per domain.

A peer knows no prompts: its domains differ in their classes only, so each of its forwards is a little less work than
ours. Runs in the peers' own environments; imports nothing of the project.
"""

import io
from collections.abc import Sequence

import open_clip
import torch
from PIL import Image
from torch import Tensor

N_DOMAINS, N_CLASSES = 8, 16
PRECISION = {"float32": "fp32", "bfloat16": "bf16"}


class PlainClip:
    """An open_clip model as its users run it.

    Args:
        backbone: open_clip architecture.
        dtype: `float32`, as the library comes, or `bfloat16`.
        threads: of torch.
    """

    def __init__(self, backbone: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model, _, self._transform = open_clip.create_model_and_transforms(
            backbone, pretrained=None, precision=PRECISION[dtype]
        )
        self._model = model.eval()
        self._dtype = getattr(torch, dtype)
        with torch.inference_mode():
            width = self._model.encode_image(torch.zeros(1, 3, *self._image_size(), dtype=self._dtype)).shape[-1]
        self._text_DKE = torch.nn.functional.normalize(torch.randn(N_DOMAINS, N_CLASSES, width), dim=-1)

    def decode(self, data: bytes) -> Tensor:
        """A file to a normalised image [3, H, W]."""
        image: Tensor = self._transform(Image.open(io.BytesIO(data)).convert("RGB"))
        return image

    @torch.inference_mode()
    def embed(self, images: Sequence[Tensor]) -> Tensor:
        """Unit features [B, E], float32."""
        features: Tensor = self._model.encode_image(torch.stack(list(images)).to(self._dtype), normalize=True)
        return features.float()

    @torch.inference_mode()
    def answer(self, images: Sequence[Tensor], domains: Sequence[int]) -> list[dict[str, float | int]]:
        """The most probable class of each image among its own domain's."""
        text_BKE = self._text_DKE[torch.tensor(list(domains))]
        scores_BK = 100 * torch.einsum("be,bke->bk", self.embed(images), text_BKE)
        best = scores_BK.softmax(dim=-1).max(dim=-1)
        return [
            {"class_id": int(class_id), "probability": float(value)}
            for value, class_id in zip(best.values, best.indices, strict=True)
        ]

    def _image_size(self) -> tuple[int, int]:
        height, width = self._model.visual.image_size
        return int(height), int(width)
