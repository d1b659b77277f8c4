"""The peers' model: open_clip's own model and transform, random weights, class features per domain.

It has no prompts, so each forward is slightly less work than ours. Imports nothing of the project.
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
    """An open_clip model as its users run it, in `float32` or `bfloat16`; `text_DKE` are class features by domain."""

    def __init__(self, backbone: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model, _, self.transform = open_clip.create_model_and_transforms(
            backbone, pretrained=None, precision=PRECISION[dtype]
        )
        self.model = model.eval()
        self._dtype = getattr(torch, dtype)
        height, width = self.model.visual.image_size
        with torch.inference_mode():
            embed_dim = self.model.encode_image(torch.zeros(1, 3, height, width, dtype=self._dtype)).shape[-1]
        self.text_DKE = torch.nn.functional.normalize(torch.randn(N_DOMAINS, N_CLASSES, embed_dim), dim=-1)

    def decode(self, data: bytes) -> Tensor:
        """A file to a normalised image [3, H, W]."""
        image: Tensor = self.transform(Image.open(io.BytesIO(data)).convert("RGB"))
        return image

    @torch.inference_mode()
    def classify(self, images: Sequence[Tensor], domains: Sequence[int]) -> list[dict[str, float | int]]:
        """The most probable class of each image among those of its domain."""
        features_BE = self.model.encode_image(torch.stack(list(images)).to(self._dtype), normalize=True).float()
        scores_BK = 100 * torch.einsum("be,bke->bk", features_BE, self.text_DKE[torch.tensor(list(domains))])
        best = scores_BK.softmax(dim=-1).max(dim=-1)
        return [
            {"class_id": int(class_id), "probability": float(value)}
            for value, class_id in zip(best.values, best.indices, strict=True)
        ]
