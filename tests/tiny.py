"""Tiny seeded backbones: the same architecture family as ViT-B-16, milliseconds on a CPU."""

import functools
import json
import tempfile
from pathlib import Path

import open_clip
import torch

from prompted_clip.backbone import Backbone, load_backbone

CONFIGS = {
    "tiny": {"embed_dim": 24, "width": 32, "layers": 3, "text_width": 32, "text_layers": 3},
    "tiny-teacher": {"embed_dim": 40, "width": 64, "layers": 4, "text_width": 48, "text_layers": 3},
}


def register_tiny_models() -> None:
    """Make `tiny` and `tiny-teacher` known to open_clip."""
    if "tiny" in open_clip.list_models():
        return
    folder = Path(tempfile.mkdtemp())
    for name, size in CONFIGS.items():
        config = {
            "embed_dim": size["embed_dim"],
            "vision_cfg": {
                "image_size": 32,
                "layers": size["layers"],
                "width": size["width"],
                "head_width": 16,
                "patch_size": 8,
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": size["text_width"],
                "heads": 4,
                "layers": size["text_layers"],
            },
        }
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@functools.lru_cache(maxsize=8)
def tiny_backbone(name: str = "tiny", seed: int = 0) -> Backbone:
    """A random tiny CLIP, the same for the same seed; its weights are large enough for prompts to matter."""
    register_tiny_models()
    return load_backbone(name, random_seed=seed)


def random_pixels(n_rows: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """uint8 noise [n_rows, 3, size, size]."""
    return torch.randint(
        0, 256, (n_rows, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
