"""One backbone answering for many domains: joins the towers, knows stacks, scores rows.

Legend: B rows, C/H/W image, K classes, E joint width, D prompt layers, P prompt tokens, W tower width.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from prompt_store.bundle import Bundle
from prompt_store.contents import HEAD_SHAPES, HeadKind, head_kind
from prompt_store.manifest import GroupSpec
from prompted_clip.backbone import Backbone
from prompted_clip.errors import StackMismatchError
from prompted_clip.heads import ClassHead, ConditionalHead, Head, ImageFeatures, MetaNet, Projector
from prompted_clip.internals import unit_norm
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.prompts import PromptGrid, collate_grids, join_groups
from prompted_clip.stack import PromptStack
from prompted_clip.text import TEXTS_AT_ONCE, encode_classes
from prompted_clip.vision import embed_image

MAX_TEXT_ROWS: Final = 1024
MAX_CONDITIONAL_CLASSES: Final = 1000


class PromptedClip:
    """A frozen CLIP whose forward takes every row's own prompts.

    Args:
        backbone: the loaded model; shared, never changed.
        max_text_rows: texts that go through the text tower at once; pairs of image and class for a conditional head.
        max_conditional_classes: most classes of a conditional head, each of which costs a text forward per image.

    Attributes:
        on_progress: called after every forward, on the thread that runs it; whoever watches for a hung device sets it.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        max_text_rows: int = MAX_TEXT_ROWS,
        max_conditional_classes: int = MAX_CONDITIONAL_CLASSES,
    ) -> None:
        self.backbone = backbone
        self._max_text_rows = max_text_rows
        self._max_conditional_classes = max_conditional_classes
        self.on_progress: Callable[[], None] = lambda: None

    @torch.inference_mode()
    def load_stack(self, bundle: Bundle, *, version: int | None = None) -> PromptStack:
        """Put a validated bundle's tensors on the device.

        Args:
            bundle: from `prompt_store.bundle.read_bundle`.
            version: its number in the store, carried into answers.

        Raises:
            StackMismatchError: made for another backbone, deeper than a tower, or too many classes for a conditional
                head.
            TextTooLongError: a class of a conditional head does not fit the text tower together with the prompts.
        """
        manifest, backbone = bundle.manifest, self.backbone
        kind = head_kind(manifest.stack, bundle.tensors)
        self._check_backbone(bundle, kind)
        precise = torch.promote_types(backbone.dtype, torch.float32)
        tensors = {
            name: torch.from_numpy(array.copy()).to(backbone.device, precise) for name, array in bundle.tensors.items()
        }
        groups = {
            name: tensors[name].to(backbone.dtype) if name in tensors else None
            for name in ("image.boost", "image.adapt", "text.boost", "text.adapt")
        }
        stack = PromptStack(
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
            text_adapt=groups["text.adapt"] if kind != "conditional" else None,
            text_features=tensors.get("text.features"),
            image=join_groups([groups["image.boost"], groups["image.adapt"]]),
            labels=manifest.stack.labels,
        )
        return dataclasses.replace(stack, head=self._head(stack, kind, tensors, manifest.stack.head_share))

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
            text_features=self._encode_classes(class_names, templates, None),
            image=None,
        )

    @torch.inference_mode()
    def boost_stack(self, stack: PromptStack) -> PromptStack:
        """What the boosting prompts alone answer: without adapting prompts and what was learned on top.

        Raises:
            StackMismatchError: the stack has no boosting prompts, or no template to encode its classes with.
        """
        if stack.image_boost is None and stack.text_boost is None:
            msg = f"Domain {stack.domain!r} has no boosting prompts, so it cannot answer with stack=boost."
            raise StackMismatchError(msg)
        if stack.image_adapt is None and stack.text_adapt is None:
            is_plain = stack.head is None and stack.labels == "any"
            # A projector without adapting prompts was learned together with the boosting prompts, and belongs to them.
            if is_plain or isinstance(stack.head, Projector):
                return stack
        return dataclasses.replace(
            stack,
            image_adapt=None,
            text_adapt=None,
            image=join_groups([stack.image_boost]),
            text_features=self._text_features(stack, stack.class_texts, join_groups([stack.text_boost])),
            labels="any",
            head=None,
        )

    @torch.inference_mode()
    def with_labels(self, stack: PromptStack, labels: Sequence[str]) -> PromptStack:
        """Open vocabulary: the domain's own prompts, other classes.

        A class head knows the bundle's own classes only and is left out; a conditional head goes on with other classes.

        Args:
            stack: whose prompts to use.
            labels: the classes to choose among, at least one.

        Raises:
            StackMismatchError: the stack can serve its own classes only, has no template, or a conditional head would
                get too many classes.
            TextTooLongError: a label does not fit the text tower together with the prompts.
        """
        self._check_open(stack)
        head = stack.head
        opened = dataclasses.replace(stack, class_names=tuple(labels), class_texts=tuple(labels), head=None)
        if isinstance(head, ConditionalHead):
            return dataclasses.replace(opened, head=self._conditional_head(opened, head.net))
        return dataclasses.replace(opened, text_features=self._text_features(stack, labels, stack.text))

    @torch.inference_mode()
    def encode_images(self, pixels_BCHW: Tensor, stacks: Sequence[PromptStack]) -> ImageFeatures:
        """Image features, each row under its own domain's prompts.

        Args:
            pixels_BCHW: uint8 from `to_pixels`, on any device.
            stacks: one per row, all of one lane; domains and depths may differ.

        Returns:
            What `score` needs, on the backbone's device.

        Raises:
            ValueError: rows with different numbers of prompt tokens in one batch.
        """
        images = normalize_pixels(pixels_BCHW.to(self.backbone.device), self.backbone.preprocess)
        v_BE = embed_image(self.backbone, images, collate_grids([stack.image for stack in stacks]))
        v_BE = v_BE.to(torch.promote_types(v_BE.dtype, torch.float32))
        self.on_progress()
        return ImageFeatures(v_BE, unit_norm(v_BE))

    @torch.inference_mode()
    def logits(self, images: ImageFeatures, stack: PromptStack) -> Tensor:
        """Every image's scores over one stack's classes, before the softmax.

        Args:
            images: from `encode_images` under this stack's prompts.
            stack: whose classes.

        Returns:
            [B, K] float32, on the backbone's device.
        """
        return self._logits(images, slice(None), stack)

    @torch.inference_mode()
    def score(self, images: ImageFeatures, stacks: Sequence[PromptStack]) -> list[Tensor]:
        """Each row's probabilities over its own domain's classes.

        p(c | x) = softmax_c( s · <f(x), g_c> ). Source: CLIP (arXiv 2103.00020), figure 3. What a stack's head makes of
        that stands in `heads.py`. Rows that carry the same stack share one product.

        Args:
            images: from `encode_images`.
            stacks: one per row.

        Returns:
            Per row [K of its stack], float32, on the backbone's device.
        """
        rows_of: dict[int, list[int]] = {}
        for row, stack in enumerate(stacks):
            rows_of.setdefault(id(stack), []).append(row)
        answers: dict[int, Tensor] = {}
        for rows in rows_of.values():
            logits = self._logits(images, rows, stacks[rows[0]])
            answers |= dict(zip(rows, logits.softmax(dim=-1), strict=True))
        return [answers[row] for row in range(len(stacks))]

    def _logits(self, images: ImageFeatures, rows: list[int] | slice, stack: PromptStack) -> Tensor:
        head, scale = stack.head, stack.logit_scale
        if isinstance(head, ConditionalHead):
            f_BE = images.unit_BE[rows]
            return scale * head.similarities(
                self.backbone, f_BE, stack.text, max_text_rows=self._max_text_rows, on_progress=self.on_progress
            )
        if stack.text_features is None:
            msg = f"The stack of domain {stack.domain!r} has neither text features nor a conditional head."
            raise ValueError(msg)
        # Embeddings are gathered for heads only: plain stacks, nearly all of them, must not pay for it.
        f_BF = head.features(images.embeddings_BE[rows]) if isinstance(head, Projector) else images.unit_BE[rows]
        logits_BK = scale * f_BF @ stack.text_features.T
        return head.blend(logits_BK, images.embeddings_BE[rows]) if isinstance(head, ClassHead) else logits_BK

    def _text_features(self, stack: PromptStack, texts: Sequence[str], grid: PromptGrid | None) -> Tensor:
        if not stack.templates:
            msg = f"Domain {stack.domain!r} has no template, so no text can be encoded for it."
            raise StackMismatchError(msg)
        return self._encode_classes(texts, stack.templates, grid)

    def _encode_classes(self, texts: Sequence[str], templates: Sequence[str], grid: PromptGrid | None) -> Tensor:
        at_once = min(TEXTS_AT_ONCE, self._max_text_rows)
        return encode_classes(self.backbone, texts, templates, grid, max_texts=at_once, on_progress=self.on_progress)

    def _head(
        self, stack: PromptStack, kind: HeadKind, tensors: Mapping[str, Tensor], share: float | None
    ) -> Head | None:
        """The head of a bundle, from the tensors of its kind."""
        if kind == "conditional":
            net = MetaNet(
                context_NW=tensors["text.adapt"][0],
                hidden_weight_HE=tensors["conditional.linear1.weight"],
                hidden_bias_H=tensors["conditional.linear1.bias"],
                weight_WH=tensors["conditional.linear2.weight"],
                bias_W=tensors["conditional.linear2.bias"],
            )
            return self._conditional_head(stack, net)
        if kind == "projector":
            return Projector(
                hidden_weight_HE=tensors["head.hidden.weight"],
                hidden_bias_H=tensors["head.hidden.bias"],
                weight_FH=tensors["head.weight"],
                bias_F=tensors["head.bias"],
            )
        if share is None:
            return None
        return ClassHead(weight_KE=tensors["head.weight"], bias_K=tensors["head.bias"], share=share)

    def _conditional_head(self, stack: PromptStack, net: MetaNet) -> ConditionalHead:
        n_classes, limit = len(stack.class_texts), self._max_conditional_classes
        if n_classes > limit:
            msg = (
                f"Domain {stack.domain!r} makes text features for every image, and {n_classes} classes are more than "
                f"the {limit} that max_conditional_classes allows; choose among fewer classes, or raise that limit."
            )
            raise StackMismatchError(msg)
        (template,) = stack.templates
        texts = [template.replace("{}", text) for text in stack.class_texts]
        return ConditionalHead.for_texts(self.backbone, net, texts, stack.text)

    def _check_open(self, stack: PromptStack) -> None:
        """Refuse labels that are not the stack's own where text features cannot be made for them."""
        n_classes = len(stack.class_names)
        if stack.has_class_contexts:
            msg = (
                f"Domain {stack.domain!r} has class-specific text prompts, which exist only for its own "
                f"{n_classes} classes; other labels cannot be scored."
            )
            raise StackMismatchError(msg)
        if stack.labels == "own":
            msg = (
                f"Domain {stack.domain!r} has text features that its prompts alone do not give, made for its own "
                f"{n_classes} classes; other labels cannot be scored."
            )
            raise StackMismatchError(msg)

    def _check_backbone(self, bundle: Bundle, kind: HeadKind) -> None:
        manifest, backbone = bundle.manifest, self.backbone
        if manifest.backbone.fingerprint != backbone.fingerprint:
            msg = (
                f"The bundle for domain {manifest.domain!r} was made for {manifest.backbone.arch} with fingerprint "
                f"{manifest.backbone.fingerprint}; this service runs {backbone.arch} with {backbone.fingerprint}. "
                "Train it again on this backbone, or serve the backbone it was made for."
            )
            raise StackMismatchError(msg)
        towers = (
            ("image", manifest.stack.image, backbone.n_vision_layers, backbone.vision_width),
            ("text", manifest.stack.text, backbone.n_text_layers, backbone.text_width),
        )
        for tower, groups, n_layers, width in towers:
            for part, group in (("boost", groups.boost), ("adapt", groups.adapt)):
                if group is not None:
                    _check_group(f"{tower}.{part}", group, bundle.tensors[f"{tower}.{part}"].shape[-1], n_layers, width)
        for name, letters in HEAD_SHAPES[kind].items():
            if letters.endswith("E") and bundle.tensors[name].shape[-1] != backbone.embed_dim:
                msg = (
                    f"{name} has {bundle.tensors[name].shape[-1]} columns; the backbone's joint space has "
                    f"{backbone.embed_dim}."
                )
                raise StackMismatchError(msg)


def _check_group(name: str, group: GroupSpec, found_width: int, n_layers: int, width: int) -> None:
    if group.depth > n_layers or found_width != width:
        msg = (
            f"{name} is {group.depth} layers of width {found_width}; the tower has {n_layers} layers of width {width}."
        )
        raise StackMismatchError(msg)
