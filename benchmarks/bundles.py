"""Bundles with random prompts for any backbone: what they answer means nothing, what they cost is what any costs.

Every label carries the domain and version it belongs to (`benchmarks.tags`), so an answer put together from two shows.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.tags import label
from prompt_store.bundle import write_bundle
from prompt_store.manifest import ClassSpec, GroupSpec, GroupsSpec, Manifest, Provenance, StackSpec
from prompted_clip.backbone import Backbone

CREATED = "2026-01-01T00:00:00+00:00"
PROMPT_STD = 0.02


@dataclass(frozen=True)
class BundleShape:
    """How large random bundles are.

    Attributes:
        boost_tokens: boosting prompts of the image tower; 0 for none.
        adapt_tokens: adapting prompts of it; 0 for none.
        depth: layers that have prompts of their own; no more than the tower has.
        n_classes: of every domain.
    """

    boost_tokens: int = 8
    adapt_tokens: int = 4
    depth: int = 9
    n_classes: int = 16

    @property
    def n_tokens(self) -> int:
        """Prompt positions in the image tower."""
        return self.boost_tokens + self.adapt_tokens


def random_bundle(backbone: Backbone, domain: str, version: int, shape: BundleShape, *, seed: int = 0) -> bytes:
    """A bundle file with random image prompts and text features.

    Args:
        backbone: what it is for.
        domain: its name.
        version: the number that its labels carry; the store counts by itself, from 1.
        shape: how large it is.
        seed: other prompts for another seed, domain or version.
    """
    rng = np.random.default_rng([seed, version, *domain.encode()])
    depth = min(shape.depth, backbone.n_vision_layers)
    counts = {"boost": shape.boost_tokens, "adapt": shape.adapt_tokens}
    tensors = {
        f"image.{part}": (PROMPT_STD * rng.standard_normal((depth, n, backbone.vision_width))).astype(np.float32)
        for part, n in counts.items()
        if n
    }
    text = rng.standard_normal((shape.n_classes, backbone.embed_dim)).astype(np.float32)
    tensors["text.features"] = text / np.linalg.norm(text, axis=1, keepdims=True)
    groups = {part: GroupSpec(depth=depth, tokens=n) if n else None for part, n in counts.items()}
    names = [label(domain, version, class_id) for class_id in range(shape.n_classes)]
    manifest = Manifest(
        format=1,
        domain=domain,
        backbone=backbone.spec(),
        classes=[ClassSpec(name=name, text=name) for name in names],
        templates=["{}."],
        logit_scale=backbone.logit_scale,
        stack=StackSpec(
            head="static",
            labels="own",
            head_share=None,
            image=GroupsSpec(boost=groups["boost"], adapt=groups["adapt"]),
            text=GroupsSpec(boost=None, adapt=None),
        ),
        provenance=Provenance(method="random", phase="boost", code_version="benchmark", created=CREATED),
    )
    return write_bundle(manifest, tensors)
