"""What phase 2 adapts: the frozen backbone, boosted or plain.

CasPL (arXiv 2409.17805, section 3.2) takes backbone and boosting prompts together as the new original CLIP; wherever a
method's paper says CLIP, its code here says base model. Boosting prompts never receive a gradient.

Legend: B rows, C/H/W image, K classes, T text tokens, L prompt layers, P prompt tokens, W tower width, E joint width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.internals import embed_tokens, unit_norm
from prompted_clip.prompts import join_groups
from prompted_clip.text import embed_text, encode_classes, encode_tokens, tokenize
from prompted_clip.vision import embed_image
from training.errors import BoostBundleError
from training.files import read_bundle_file
from training.hardware import resolve_device


@dataclass(frozen=True)
class ClassTokens:
    """Tokenised class texts: ids [K, T] int64 (padding 0) and EOT positions [K] int64, on the CPU."""

    ids_KT: Tensor
    eot_K: Tensor


@dataclass(frozen=True, eq=False)
class PromptedBackbone:
    """A frozen CLIP with a domain's boosting prompts, or without.

    Attributes:
        backbone: the frozen CLIP.
        image_boost: [L, P, vision width] or None; no gradient.
        text_boost: [L, P, text width] or None; no gradient.
        boost_digest: of the bundle the boosting prompts came from; None for the plain backbone.
        template: what stood behind the text prompts when they were learned, with one `{}`; None for the plain backbone.
    """

    backbone: Backbone
    image_boost: Tensor | None = None
    text_boost: Tensor | None = None
    boost_digest: str | None = None
    template: str | None = None

    @property
    def is_boosted(self) -> bool:
        """Whether there are boosting prompts."""
        return self.image_boost is not None or self.text_boost is not None

    @property
    def logit_scale(self) -> float:
        """s, the multiplier of cosine similarities; frozen."""
        return self.backbone.logit_scale

    @property
    def n_text_boost(self) -> int:
        """Positions that boosting prompts take in the text tower."""
        return self.text_boost.shape[1] if self.text_boost is not None else 0

    def plain(self) -> "PromptedBackbone":
        """The same backbone without boosting prompts."""
        return PromptedBackbone(self.backbone)

    def reference(self, kind: Literal["boosted", "plain"]) -> "PromptedBackbone":
        """The frozen reference of methods that hold on to one; the paper does not say which, so it is a choice."""
        return self if kind == "boosted" else self.plain()

    def tokenize(self, class_names: Sequence[str], template: str, *, n_prompts: int) -> ClassTokens:
        """Tokenise `template` with each class name in place of its `{}`.

        Args:
            class_names: K names.
            template: what stands behind the prompts, such as `{}.`.
            n_prompts: positions that adapting prompts will take; boosting prompts are counted by themselves.

        Raises:
            TextTooLongError: names the first class that does not fit.
        """
        texts = [template.replace("{}", name) for name in class_names]
        return ClassTokens(*tokenize(self.backbone, texts, n_prompts=n_prompts + self.n_text_boost))

    def embed_images(self, images_BCHW: Tensor, adapt: Tensor | None = None) -> Tensor:
        """Image embeddings [B, E] before they are brought to length 1.

        Args:
            images_BCHW: normalised images on the backbone's device.
            adapt: adapting prompts [L, P, vision width], or None; they stand behind the boosting prompts.
        """
        return embed_image(self.backbone, images_BCHW, join_groups([self.image_boost, adapt]))

    def encode_images(self, images_BCHW: Tensor, adapt: Tensor | None = None) -> Tensor:
        """f(x): `embed_images` at length 1, float32."""
        return unit_norm(self.embed_images(images_BCHW, adapt))

    def encode_text(self, tokens: ClassTokens, adapt: Tensor | None = None) -> Tensor:
        """g: text features [K, E] float32, unit norm.

        Args:
            tokens: from `tokenize`.
            adapt: adapting prompts [L, P, text width], or [K, L, P, text width] with one set per class; they stand in
                front of the boosting prompts.
        """
        return encode_tokens(self.backbone, tokens.ids_KT, tokens.eot_K, join_groups([adapt, self.text_boost]))

    def embed_text(self, tokens: ClassTokens, adapt: Tensor | None = None) -> Tensor:
        """`encode_text` before the features are brought to length 1: [K, E]."""
        x = embed_tokens(self.backbone.clip, tokens.ids_KT.to(self.backbone.device))
        return embed_text(self.backbone, x, tokens.eot_K, join_groups([adapt, self.text_boost]))

    @torch.no_grad()
    def zero_shot_text(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Frozen text features [K, E]: the mean over templates, unit norm."""
        return encode_classes(self.backbone, class_names, templates, join_groups([self.text_boost]))


def boosted_backbone(backbone: Backbone, bundle: Bundle) -> PromptedBackbone:
    """The base model that a boosting bundle makes of a backbone.

    Raises:
        BoostBundleError: the bundle was made for other weights, or holds no boosting prompts.
    """
    manifest = bundle.manifest
    if manifest.backbone.fingerprint != backbone.fingerprint:
        msg = (
            f"The boosting bundle was made for {manifest.backbone.arch} with fingerprint "
            f"{manifest.backbone.fingerprint}, found {backbone.arch} with {backbone.fingerprint}; "
            "boost this backbone, or adapt the one the bundle was made for."
        )
        raise BoostBundleError(msg)
    if any(name.startswith("head.") for name in bundle.tensors):
        msg = (
            f"The bundle for domain {manifest.domain!r} answers through a projector to its teacher's space; methods "
            "adapt prompts in the backbone's own. Boost with distillation=caspl to adapt on top."
        )
        raise BoostBundleError(msg)
    groups = {
        name: torch.from_numpy(bundle.tensors[name].copy()).float().to(backbone.device)
        for name in ("image.boost", "text.boost")
        if name in bundle.tensors
    }
    if not groups:
        msg = f"The bundle for domain {manifest.domain!r} holds no boosting prompts; give one that `caspl boost` wrote."
        raise BoostBundleError(msg)
    return PromptedBackbone(
        backbone,
        image_boost=groups.get("image.boost"),
        text_boost=groups.get("text.boost"),
        boost_digest=bundle.digest,
        template=manifest.templates[0] if manifest.templates else None,
    )


def load_prompted_backbone(
    arch: str,
    pretrained: str | None,
    boost: Path | None,
    *,
    is_random: bool,
    device: str,
    quick_gelu: bool = False,
) -> PromptedBackbone:
    """Load a backbone, and a domain's boosting prompts if there are any.

    Args:
        arch: open_clip name.
        pretrained: its weights.
        boost: a bundle that `caspl boost` wrote, or None for the plain backbone.
        is_random: random weights from seed 0 instead, for trying a pipeline out.
        device: `cpu`, `cuda`, `cuda:<n>` or `auto` (CUDA when there is one).
        quick_gelu: for a local file of OpenAI's weights; tags that need it get it without asking.

    Raises:
        WeightsError: the backbone cannot be loaded.
        BundleInvalidError, BoostBundleError: the bundle cannot be used.
    """
    bundle = read_bundle_file(boost) if boost is not None else None
    backbone = load_backbone(
        arch,
        pretrained=pretrained,
        random_seed=0 if is_random else None,
        quick_gelu=quick_gelu,
        device=resolve_device(device),
    )
    return boosted_backbone(backbone, bundle) if bundle is not None else PromptedBackbone(backbone)
