"""One backbone answering for many domains: joins the towers, knows stacks, scores rows.

Legend: B rows, C/H/W image, K classes, E joint width, D prompt layers, P prompt tokens, W tower width.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from prompt_store.bundle import Bundle
from prompt_store.manifest import GroupSpec
from prompted_clip.backbone import Backbone
from prompted_clip.errors import StackMismatchError
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.prompts import collate_grids, join_groups
from prompted_clip.stack import PromptStack
from prompted_clip.text import encode_classes
from prompted_clip.vision import encode_image


class PromptedClip:
    """A frozen CLIP whose forward takes every row's own prompts.

    Args:
        backbone: the loaded model; shared, never changed.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    @torch.inference_mode()
    def load_stack(self, bundle: Bundle, *, version: int | None = None) -> PromptStack:
        """Put a validated bundle's tensors on the device.

        Args:
            bundle: from `prompt_store.bundle.read_bundle`.
            version: its number in the store, carried into answers.

        Raises:
            StackMismatchError: made for another backbone, deeper than a tower, or with a head this model cannot run.
        """
        manifest = bundle.manifest
        self._check_backbone(bundle)
        tensors = {name: torch.from_numpy(array.copy()) for name, array in bundle.tensors.items()}
        backbone = self.backbone
        groups = {
            name: tensors[name].to(backbone.device, backbone.dtype) if name in tensors else None
            for name in ("image.boost", "image.adapt", "text.boost", "text.adapt")
        }
        return PromptStack(
            domain=manifest.domain,
            version=version,
            digest=bundle.digest,
            class_names=tuple(c.name for c in manifest.classes),
            class_texts=tuple(c.text for c in manifest.classes),
            templates=tuple(manifest.templates),
            logit_scale=manifest.logit_scale,
            image_boost=groups["image.boost"],
            image_adapt=groups["image.adapt"],
            text_boost=groups["text.boost"],
            text_adapt=groups["text.adapt"],
            text_features=tensors["text.features"].to(backbone.device, torch.float32),
            image=join_groups([groups["image.boost"], groups["image.adapt"]]),
        )

    @torch.inference_mode()
    def plain_stack(self, domain: str, class_names: Sequence[str], templates: Sequence[str]) -> PromptStack:
        """The zero-shot baseline: no prompts, text features of the plain backbone.

        Raises:
            TextTooLongError: a class does not fit the text tower.
        """
        return PromptStack(
            domain=domain,
            version=None,
            digest=None,
            class_names=tuple(class_names),
            class_texts=tuple(class_names),
            templates=tuple(templates),
            logit_scale=self.backbone.logit_scale,
            image_boost=None,
            image_adapt=None,
            text_boost=None,
            text_adapt=None,
            text_features=encode_classes(self.backbone, class_names, templates),
            image=None,
        )

    @torch.inference_mode()
    def boost_stack(self, stack: PromptStack) -> PromptStack:
        """The same stack without its adapting prompts: what the boosting prompts alone answer.

        Raises:
            StackMismatchError: the stack has no boosting prompts.
        """
        if stack.image_boost is None and stack.text_boost is None:
            msg = f"Domain {stack.domain!r} has no boosting prompts, so it cannot answer with stack=boost."
            raise StackMismatchError(msg)
        if stack.image_adapt is None and stack.text_adapt is None:
            return stack
        text = join_groups([stack.text_boost])
        return dataclasses.replace(
            stack,
            image_adapt=None,
            text_adapt=None,
            image=join_groups([stack.image_boost]),
            text_features=encode_classes(self.backbone, stack.class_texts, stack.templates, text),
        )

    @torch.inference_mode()
    def with_labels(self, stack: PromptStack, labels: Sequence[str]) -> PromptStack:
        """Open vocabulary: the domain's own prompts, other classes.

        Args:
            stack: whose prompts to use.
            labels: the classes to choose among, at least one.

        Raises:
            StackMismatchError: the text prompts are class-specific and cannot serve other labels.
            TextTooLongError: a label does not fit the text tower together with the prompts.
        """
        if stack.has_class_contexts:
            msg = (
                f"Domain {stack.domain!r} has class-specific text prompts, which exist only for its own "
                f"{len(stack.class_names)} classes; other labels cannot be scored."
            )
            raise StackMismatchError(msg)
        return dataclasses.replace(
            stack,
            class_names=tuple(labels),
            class_texts=tuple(labels),
            text_features=encode_classes(self.backbone, labels, stack.templates, stack.text),
        )

    @torch.inference_mode()
    def encode_images(self, pixels_BCHW: Tensor, stacks: Sequence[PromptStack]) -> Tensor:
        """Image features, each row under its own domain's prompts.

        Args:
            pixels_BCHW: uint8 from `to_pixels`, on any device.
            stacks: one per row, all of one lane; domains and depths may differ.

        Returns:
            [B, E] float32, unit norm, on the backbone's device.

        Raises:
            ValueError: rows of different lanes in one batch.
        """
        images = normalize_pixels(pixels_BCHW.to(self.backbone.device), self.backbone.preprocess)
        return encode_image(self.backbone, images, collate_grids([stack.image for stack in stacks]))

    @torch.inference_mode()
    def score(self, features_BE: Tensor, stacks: Sequence[PromptStack]) -> list[Tensor]:
        """Each row's probabilities over its own domain's classes.

        p(c | x) = softmax_c( s · <f(x), g_c> ). Source: CLIP (arXiv 2103.00020), figure 3.
        Rows that carry the same stack share one product.

        Args:
            features_BE: from `encode_images`.
            stacks: one per row.

        Returns:
            Per row [K of its stack], float32, on the backbone's device.
        """
        rows_of: dict[int, list[int]] = {}
        for row, stack in enumerate(stacks):
            rows_of.setdefault(id(stack), []).append(row)
        answers: dict[int, Tensor] = {}
        for rows in rows_of.values():
            stack = stacks[rows[0]]
            logits = stack.logit_scale * features_BE[rows] @ stack.text_features.T
            answers |= dict(zip(rows, logits.softmax(dim=-1), strict=True))
        return [answers[row] for row in range(len(stacks))]

    def _check_backbone(self, bundle: Bundle) -> None:
        manifest, backbone = bundle.manifest, self.backbone
        if manifest.backbone.fingerprint != backbone.fingerprint:
            msg = (
                f"The bundle for domain {manifest.domain!r} was made for {manifest.backbone.arch} with fingerprint "
                f"{manifest.backbone.fingerprint}; this service runs {backbone.arch} with {backbone.fingerprint}. "
                "Train it again on this backbone, or serve the backbone it was made for."
            )
            raise StackMismatchError(msg)
        if manifest.stack.head != "static" or any(name.startswith("head.") for name in bundle.tensors):
            msg = f"The bundle for domain {manifest.domain!r} has a {manifest.stack.head} or extra linear head."
            raise StackMismatchError(msg + " This version serves static text features only.")
        towers = (
            ("image", manifest.stack.image, backbone.n_vision_layers, backbone.vision_width),
            ("text", manifest.stack.text, backbone.n_text_layers, backbone.text_width),
        )
        for tower, groups, n_layers, width in towers:
            for kind, group in (("boost", groups.boost), ("adapt", groups.adapt)):
                if group is not None:
                    _check_group(f"{tower}.{kind}", group, bundle.tensors[f"{tower}.{kind}"].shape[-1], n_layers, width)
        embed = bundle.tensors["text.features"].shape[1]
        if embed != backbone.embed_dim:
            msg = f"text.features has {embed} columns; the backbone's joint space has {backbone.embed_dim}."
            raise StackMismatchError(msg)


def _check_group(name: str, group: GroupSpec, found_width: int, n_layers: int, width: int) -> None:
    if group.depth > n_layers or found_width != width:
        msg = (
            f"{name} is {group.depth} layers of width {found_width}; the tower has {n_layers} layers of width {width}."
        )
        raise StackMismatchError(msg)
