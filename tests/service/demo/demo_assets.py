"""A demo folder for the demo's backbone with random weights: real bundles, real pictures, no training."""

import numpy as np
from PIL import Image

from prompted_clip.backbone import load_backbone
from tests.stacks import random_bundle

SEED = 0
DOMAINS = {"shelf": ("red cup", "blue cup"), "tiles": ("field", "river")}


def write_assets(folder):
    """Fill `folder` with bundles, images and one upload; serve them with `--random-weights`."""
    backbone = load_backbone("demo-student", random_seed=SEED)
    rng = np.random.default_rng(0)
    for name in ("bundles", "upload", *(f"images/{domain}" for domain in DOMAINS)):
        (folder / name).mkdir(parents=True)
    for number, (domain, classes) in enumerate(DOMAINS.items()):
        bundle = random_bundle(domain, classes, backbone=backbone, seed=number)
        (folder / "bundles" / f"{domain}.safetensors").write_bytes(bundle)
        for label, suffix in zip(classes, (".jpg", ".png"), strict=True):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / domain / f"{label.replace(' ', '_')}-1{suffix}")
    upload = random_bundle("shelf", DOMAINS["shelf"], backbone=backbone, seed=7)
    (folder / "upload" / "shelf-2.safetensors").write_bytes(upload)
    return folder
