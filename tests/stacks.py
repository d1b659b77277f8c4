"""Bundles with random prompts for the tiny backbone."""

import numpy as np

from prompt_store.bundle import write_bundle
from prompt_store.contents import HEAD_SHAPES
from prompt_store.manifest import ClassSpec, GroupSpec, GroupsSpec, Manifest, Provenance, StackSpec
from tests.tiny import tiny_backbone

SHARE = 0.7
"""Of a class head in the logits."""
HIDDEN = 6
"""Width between the two layers of a projector or meta-net."""
OTHER_WIDTH = 40
"""Width of the space a projector leads to: not the backbone's own."""


def random_bundle(
    domain="demo",
    class_names=("cat", "dog", "bird"),
    *,
    image_boost=(2, 3),
    image_adapt=None,
    text_boost=None,
    text_adapt=None,
    head="plain",
    head_input="embedding",
    labels="any",
    backbone=None,
    seed=0,
    **manifest_changes,
):
    """Bytes of a valid bundle; group shapes are (depth, tokens), or (classes, depth, tokens) for `text_adapt`.

    `head` is a `HeadKind`; a projector goes with labels="own", a conditional head with text_adapt=(1, tokens).
    """
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
    tensors |= head_tensors(rng, head, len(class_names), backbone)

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
            head="conditional" if head == "conditional" else "static",
            labels=labels,
            head_share=SHARE if head == "class" else None,
            head_input=head_input,
            image=GroupsSpec(boost=spec(image_boost), adapt=spec(image_adapt)),
            text=GroupsSpec(boost=spec(text_boost), adapt=spec(text_adapt)),
        ),
        "provenance": Provenance(
            method="random", phase="boost", code_version="test", created="2026-01-01T00:00:00+00:00"
        ),
    }
    return write_bundle(Manifest(**(values | manifest_changes)), tensors)


def head_tensors(rng, kind, n_classes, backbone):
    """Everything besides the prompt groups, large enough to matter; text features have rows of length 1."""
    sizes = {"K": n_classes, "E": backbone.embed_dim, "F": OTHER_WIDTH, "H": HIDDEN, "W": backbone.text_width}
    tensors = {
        name: 0.3 * rng.standard_normal([sizes[letter] for letter in letters])
        for name, letters in HEAD_SHAPES[kind].items()
    }
    if "text.features" in tensors:
        tensors["text.features"] /= np.linalg.norm(tensors["text.features"], axis=1, keepdims=True)
    return {name: array.astype(np.float32) for name, array in tensors.items()}
