"""Image filters for domains and augmentation. Images are [N, C, H, W] in [0, 1]."""

import torch
from torch import Tensor
from torch.nn import functional as F


def grey(picture: Tensor) -> Tensor:
    """Luma (Rec. 601): [N, 1, H, W]."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (picture * weights).sum(1, keepdim=True)


def blur(picture: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur with reflection padding."""
    reach = max(1, int(2.5 * sigma_px + 0.5))
    offsets = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-(offsets**2) / (2 * sigma_px**2))
    n_channels = picture.shape[1]
    kernel = (kernel / kernel.sum()).expand(n_channels, 1, 1, -1)
    picture = F.conv2d(F.pad(picture, (reach, reach, 0, 0), mode="reflect"), kernel, groups=n_channels)
    kernel = kernel.transpose(2, 3)
    return F.conv2d(F.pad(picture, (0, 0, reach, reach), mode="reflect"), kernel, groups=n_channels)


def edges(picture: Tensor) -> Tensor:
    """Sobel gradient magnitude of the luma: [N, 1, H, W]."""
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])[None, None] / 4
    padded = F.pad(grey(picture), (1, 1, 1, 1), mode="reflect")
    across, down = F.conv2d(padded, kernel), F.conv2d(padded, kernel.transpose(2, 3))
    return torch.sqrt(across**2 + down**2 + 1e-6)
