"""The base model of phase 2: a frozen CLIP, with or without a domain's boosting prompts.

CasPL (arXiv 2409.17805, section 3.2) treats backbone and boosting prompts together as the new original CLIP. Where a
method's paper says CLIP, the code here says base model. Boosting prompts never receive gradients.

Legend: B rows, C/H/W image, K classes, T text tokens, L prompt layers, P prompt tokens, W tower width, E joint width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone, WeightOptions, load_backbone
from prompted_clip.internals import embed_tokens, unit_norm
from prompted_clip.prompts import join_groups
from prompted_clip.text import embed_text, encode_classes, encode_tokens, tokenize
from prompted_clip.vision import embed_image
from training.errors import BoostBundleError
from training.files import read_bundle_file
from training.hardware import resolve_device


@dataclass(frozen=True)
class ClassTokens:
    """Tokenised class texts: ids [K, T] int64 (padding 0) and EOT positions [K] int64, on the backbone's device."""

    ids_KT: Tensor
    eot_K: Tensor


@dataclass(frozen=True, eq=False)
class PromptedBackbone:
    """A frozen CLIP, with or without a domain's boosting prompts.

    Attributes:
        backbone: the frozen CLIP.
        image_boost: [L, P, vision width] or None; no gradient.
        text_boost: [L, P, text width] or None; no gradient.
        boost_digest: digest of the boosting bundle; None for the plain backbone.
        template: text after the prompts during boosting, with one `{}`; None for the plain backbone.
    """

    backbone: Backbone
    image_boost: Tensor | None = None
    text_boost: Tensor | None = None
    boost_digest: str | None = None
    template: str | None = None

    @property
    def logit_scale(self) -> float:
        """s, the frozen scale of cosine similarities."""
        return self.backbone.logit_scale

    @property
    def n_text_boost(self) -> int:
        """Number of boosting tokens in the text tower."""
        return self.text_boost.shape[1] if self.text_boost is not None else 0

    def plain(self) -> "PromptedBackbone":
        """The same backbone without boosting prompts."""
        return PromptedBackbone(self.backbone)

    def reference(self, kind: Literal["boosted", "plain"]) -> "PromptedBackbone":
        """The frozen reference model of PromptSRC and ProGrad; the CasPL paper does not say which one to use."""
        return self if kind == "boosted" else self.plain()

    def tokenize(self, class_names: Sequence[str], template: str, *, n_prompts: int) -> ClassTokens:
        """Insert each class name into `template` and tokenise.

        Args:
            class_names: K names.
            template: text after the prompts, such as `{}.`.
            n_prompts: number of adapting tokens; boosting tokens are added automatically.

        Raises:
            TextTooLongError: names the first class that does not fit.
        """
        texts = [template.replace("{}", name) for name in class_names]
        tokens = tokenize(self.backbone, texts, n_prompts=n_prompts + self.n_text_boost)
        return ClassTokens(*(tensor.to(self.backbone.device) for tensor in tokens))

    def embed_images(self, images_BCHW: Tensor, adapt: Tensor | None = None) -> Tensor:
        """Unnormalised image embeddings [B, E].

        Args:
            images_BCHW: normalised images on the backbone's device.
            adapt: adapting prompts [L, P, vision width], placed after the boosting prompts, or None.
        """
        return embed_image(self.backbone, images_BCHW, join_groups([self.image_boost, adapt]))

    def encode_images(self, images_BCHW: Tensor, adapt: Tensor | None = None) -> Tensor:
        """f(x): image features [B, E], float32, unit norm."""
        return unit_norm(self.embed_images(images_BCHW, adapt))

    def encode_text(self, tokens: ClassTokens, adapt: Tensor | None = None) -> Tensor:
        """g: text features [K, E] float32, unit norm.

        Args:
            tokens: from `tokenize`.
            adapt: adapting prompts [L, P, text width], or [K, L, P, text width] with one set per class; placed before
                the boosting prompts.
        """
        return encode_tokens(self.backbone, tokens.ids_KT, tokens.eot_K, join_groups([adapt, self.text_boost]))

    def embed_text(self, tokens: ClassTokens, adapt: Tensor | None = None) -> Tensor:
        """Unnormalised text embeddings [K, E]; see `encode_text`."""
        x = embed_tokens(self.backbone.clip, tokens.ids_KT)
        return embed_text(self.backbone, x, tokens.eot_K, join_groups([adapt, self.text_boost]))

    @torch.no_grad()
    def zero_shot_text(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Zero-shot text features [K, E]: the mean over templates, unit norm; no gradient."""
        return encode_classes(self.backbone, class_names, templates, join_groups([self.text_boost]))


def boosted_backbone(backbone: Backbone, bundle: Bundle) -> PromptedBackbone:
    """Combine a backbone with the boosting prompts of a bundle.

    Raises:
        BoostBundleError: the bundle was made for another backbone, or contains no boosting prompts.
    """
    manifest = bundle.manifest
    if difference := manifest.backbone.first_difference(backbone.spec()):
        fact, found, expected = difference
        msg = (
            f"The boosting bundle was made for {manifest.backbone.arch} with {fact} {found}, but the backbone, "
            f"{backbone.arch}, has {expected}. Boost this backbone, or load the one the bundle was made for."
        )
        raise BoostBundleError(msg)
    if any(name.startswith("head.hidden.") for name in bundle.tensors):
        msg = (
            f"The bundle for domain {manifest.domain!r} projects images to its teacher's embedding space, so it cannot "
            "be adapted. Boost with distillation=caspl to adapt on top."
        )
        raise BoostBundleError(msg)
    groups = {
        name: torch.from_numpy(bundle.tensors[name].copy()).float().to(backbone.device)
        for name in ("image.boost", "text.boost")
        if name in bundle.tensors
    }
    if not groups:
        msg = f"The bundle for domain {manifest.domain!r} contains no boosting prompts; pass one from `caspl boost`."
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
    **options: Unpack[WeightOptions],
) -> PromptedBackbone:
    """Load a backbone, and boosting prompts if given.

    Args:
        arch: open_clip model name.
        pretrained: open_clip tag or local file.
        boost: a bundle from `caspl boost`, or None for the plain backbone.
        is_random: use random weights (seed 0), for testing a pipeline.
        device: `cpu`, `cuda`, `cuda:<n>` or `auto` (CUDA if available).
        options: for a local file.

    Raises:
        WeightsError: the backbone cannot be loaded.
        BundleInvalidError, BoostBundleError: the bundle cannot be used.
    """
    bundle = read_bundle_file(boost) if boost is not None else None
    backbone = load_backbone(
        arch,
        pretrained=pretrained,
        random_seed=0 if is_random else None,
        device=resolve_device(device),
        **options,
    )
    return boosted_backbone(backbone, bundle) if bundle is not None else PromptedBackbone(backbone)
