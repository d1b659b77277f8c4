"""Bundles with random prompts for the tiny backbone."""

import numpy as np

from prompt_store.bundle import write_bundle
from prompt_store.manifest import ClassSpec, GroupSpec, GroupsSpec, Manifest, Provenance, StackSpec
from tests.tiny import tiny_backbone


def random_bundle(
    domain="demo",
    class_names=("cat", "dog", "bird"),
    *,
    image_boost=(2, 3),
    image_adapt=None,
    text_boost=None,
    text_adapt=None,
    backbone=None,
    seed=0,
    **manifest_changes,
):
    """Bytes of a valid bundle; group shapes are (depth, tokens), or (classes, depth, tokens) for `text_adapt`."""
    backbone = backbone or tiny_backbone()
    rng = np.random.default_rng(seed)
    shapes = {
        "image.boost": (image_boost, backbone.vision_width),
        "image.adapt": (image_adapt, backbone.vision_width),
        "text.boost": (text_boost, backbone.text_width),
        "text.adapt": (text_adapt, backbone.text_width),
    }
    tensors = {
        name: rng.standard_normal((*shape, width)).astype(np.float32)
        for name, (shape, width) in shapes.items()
        if shape is not None
    }
    features = rng.standard_normal((len(class_names), backbone.embed_dim))
    tensors["text.features"] = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)

    def spec(shape):
        return GroupSpec(depth=shape[-2], tokens=shape[-1]) if shape is not None else None

    values = {
        "format": 1,
        "domain": domain,
        "backbone": backbone.spec(),
        "classes": [ClassSpec(name=name, text=name) for name in class_names],
        "templates": ["{}."],
        "logit_scale": backbone.logit_scale,
        "stack": StackSpec(
            head="static",
            image=GroupsSpec(boost=spec(image_boost), adapt=spec(image_adapt)),
            text=GroupsSpec(boost=spec(text_boost), adapt=spec(text_adapt)),
        ),
        "provenance": Provenance(
            method="random", phase="boost", code_version="test", created="2026-01-01T00:00:00+00:00"
        ),
    }
    return write_bundle(Manifest(**(values | manifest_changes)), tensors)
