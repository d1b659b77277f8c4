"""The peers' model as one torch module from pixels to probabilities, to be converted for a runtime."""

import torch
from torch import Tensor

from benchmarks.peers.plain_clip import PlainClip


class Classifier(torch.nn.Module):
    """open_clip's image tower, the class features of all domains and a softmax, with the weights of `PlainClip`."""

    def __init__(self, backbone: str, threads: int) -> None:
        super().__init__()
        clip = PlainClip(backbone, "float32", threads)
        self.visual, self.text_DKE = clip.model.visual, clip.text_DKE
        self.side = int(self.visual.image_size[0])
        mean, std = (torch.tensor(getattr(self.visual, name)) for name in ("image_mean", "image_std"))
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.eval()

    def example(self) -> tuple[Tensor, Tensor]:
        """Inputs of a batch of one."""
        return torch.zeros(1, self.side, self.side, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)

    def forward(self, pixels_BHWC: Tensor, domains_B: Tensor) -> Tensor:
        """Probabilities [B, K] of the classes of each image's domain."""
        x_BCHW = (pixels_BHWC.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        features_BE = torch.nn.functional.normalize(self.visual(x_BCHW), dim=-1)
        scores_BK = 100 * torch.einsum("be,bke->bk", features_BE, self.text_DKE[domains_B])
        return scores_BK.softmax(dim=-1)
