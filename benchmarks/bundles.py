"""Bundles with random prompts, for load tests: their cost is that of trained bundles.

Every label names its domain and version, which reveals answers that mix two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prompt_store.bundle import write_bundle
from prompt_store.manifest import ClassSpec, GroupSpec, GroupsSpec, Manifest, Provenance, StackSpec

if TYPE_CHECKING:
    from prompted_clip.backbone import Backbone

CREATED = "2026-01-01T00:00:00+00:00"
PROMPT_STD = 0.02


@dataclass(frozen=True)
class BundleShape:
    """Size of random bundles.

    Attributes:
        boost_tokens: boosting prompts of the image tower.
        adapt_tokens: adapting prompts of the image tower.
        depth: prompted layers, limited by the tower's.
        n_classes: classes per domain.
    """

    boost_tokens: int = 8
    adapt_tokens: int = 4
    depth: int = 9
    n_classes: int = 16

    @property
    def n_tokens(self) -> int:
        """Prompt positions in the image tower."""
        return self.boost_tokens + self.adapt_tokens


def domain_name(index: int) -> str:
    """`d00007`."""
    return f"d{index:05d}"


def label(domain: str, version: int, class_id: int) -> str:
    """`d00007.v2.c3`: a class of one version of a domain."""
    return f"{domain}.v{version}.c{class_id}"


def source_of(found: str) -> tuple[str, int]:
    """Domain and version of a label.

    Raises:
        ValueError: not a label of these bundles.
    """
    domain, version, _ = found.split(".")
    return domain, int(version.removeprefix("v"))


def random_bundle(backbone: Backbone, domain: str, version: int, shape: BundleShape, *, seed: int = 0) -> bytes:
    """A bundle file with random image prompts and text features.

    Args:
        backbone: the backbone that it fits.
        domain: its name.
        version: version in its labels; must equal the number that the store assigns.
        shape: its size.
        seed: prompts differ by seed, domain and version.
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
