"""Loads prompt stacks: from a bundle, from class names, or from another stack with other classes.

Stacks are loaded into host memory, pinned if the device is a GPU. Only text encoding runs on the device.

Legend: K classes, E joint width, W tower width.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prompt_store.bundle import Bundle
from prompt_store.contents import HEAD_SHAPES, HeadKind, head_kind
from prompted_clip.backbone import Backbone
from prompted_clip.errors import StackMismatchError
from prompted_clip.heads import ClassHead, ConditionalHead, Head, MetaNet, Projector
from prompted_clip.prompts import PromptGrid, join_groups
from prompted_clip.stack import PromptStack
from prompted_clip.text import TEXTS_AT_ONCE, encode_classes
from prompted_clip.transfers import map_tensors


class StackLoader:
    """Loads stacks for one backbone.

    Args:
        backbone: the frozen CLIP.
        max_text_rows: most texts per text forward.
        max_conditional_classes: most classes of a conditional head.
        on_progress: is called after every text forward.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        max_text_rows: int,
        max_conditional_classes: int,
        on_progress: Callable[[], None],
    ) -> None:
        self.backbone = backbone
        self._max_text_rows = max_text_rows
        self._max_conditional_classes = max_conditional_classes
        self._on_progress = on_progress

    @torch.inference_mode()
    def from_bundle(self, bundle: Bundle, *, version: int | None = None) -> PromptStack:
        """Load a validated bundle; the device is not used.

        Args:
            bundle: from `prompt_store.bundle.read_bundle`.
            version: its number in the store.

        Raises:
            StackMismatchError: made for another backbone, deeper than a tower, or too many classes for a conditional
                head.
            TextTooLongError: a class of a conditional head does not fit the text tower together with the prompts.
        """
        manifest, backbone = bundle.manifest, self.backbone
        kind = head_kind(manifest.stack, bundle.tensors)
        self._check_backbone(bundle, kind)
        precise = torch.promote_types(backbone.dtype, torch.float32)
        tensors = {name: torch.from_numpy(array.copy()).to(precise) for name, array in bundle.tensors.items()}
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
        return self._in_host_memory(stack, head=self._head(stack, kind, tensors, manifest.stack.head_share))

    @torch.inference_mode()
    def plain(self, domain: str, class_names: Sequence[str], templates: Sequence[str]) -> PromptStack:
        """The zero-shot baseline: no prompts, text features of the plain backbone.

        Raises:
            TextTooLongError: a class does not fit the text tower.
        """
        plain = PromptStack(
            domain=domain,
            version=None,
            digest=None,
            class_names=tuple(class_names),
            class_texts=tuple(class_names),
            templates=tuple(templates),
            logit_scale=self.backbone.logit_scale,
        )
        return self._in_host_memory(plain, text_features=self._encode_classes(class_names, templates, None))

    @torch.inference_mode()
    def boost_only(self, stack: PromptStack) -> PromptStack:
        """A stack with the boosting prompts only, without adapting prompts and heads; encodes the classes again.

        Raises:
            StackMismatchError: the stack has no boosting prompts, or no template to encode its classes with.
        """
        if stack.image_boost is None and stack.text_boost is None:
            msg = f"Domain {stack.domain!r} has no boosting prompts, so it cannot answer with stack=boost."
            raise StackMismatchError(msg)
        if stack.image_adapt is None and stack.text_adapt is None:
            is_plain = stack.head is None and stack.labels == "any"
            # A projector without adapting prompts was learned with the boosting prompts and belongs to them.
            if is_plain or isinstance(stack.head, Projector):
                return stack
        return self._in_host_memory(
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
        """Open vocabulary: a stack with the same prompts and other classes.

        A class head is dropped, as it knows the bundle's own classes only; a conditional head is kept.

        Args:
            stack: the domain's stack.
            labels: the new classes, at least one.

        Raises:
            StackMismatchError: the stack can serve its own classes only, has no template, or `labels` are too many for
                a conditional head.
            TextTooLongError: a label does not fit the text tower together with the prompts.
        """
        self._check_open(stack)
        head = stack.head
        opened = dataclasses.replace(stack, class_names=tuple(labels), class_texts=tuple(labels), head=None)
        if isinstance(head, ConditionalHead):
            return self._in_host_memory(opened, head=self._conditional_head(opened, head.net))
        return self._in_host_memory(opened, text_features=self._text_features(stack, labels, stack.text))

    def _in_host_memory(self, stack: PromptStack, **changes: Any) -> PromptStack:  # noqa: ANN401  fields of a stack
        """A stack with some fields changed, in host memory; for a GPU the tensors that forwards read are pinned."""
        stack = map_tensors(dataclasses.replace(stack, **changes), Tensor.cpu)
        if self.backbone.device.type != "cuda":
            return stack
        pinned = map_tensors(stack.without_groups(), Tensor.pin_memory)
        return dataclasses.replace(stack, image=pinned.image, text_features=pinned.text_features, head=pinned.head)

    def _text_features(self, stack: PromptStack, texts: Sequence[str], grid: PromptGrid | None) -> Tensor:
        if not stack.templates:
            msg = f"Domain {stack.domain!r} has no template, so no text can be encoded for it."
            raise StackMismatchError(msg)
        return self._encode_classes(texts, stack.templates, grid)

    def _encode_classes(self, texts: Sequence[str], templates: Sequence[str], grid: PromptGrid | None) -> Tensor:
        at_once = min(TEXTS_AT_ONCE, self._max_text_rows)
        grid = grid.to(self.backbone.device) if grid is not None else None
        return encode_classes(self.backbone, texts, templates, grid, max_texts=at_once, on_progress=self._on_progress)

    def _head(
        self, stack: PromptStack, kind: HeadKind, tensors: Mapping[str, Tensor], share: float | None
    ) -> Head | None:
        """A bundle's head."""
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
                f"Domain {stack.domain!r} has text features per image, and {n_classes} classes are more than "
                f"the {limit} that max_conditional_classes allows; choose among fewer classes, or raise that limit."
            )
            raise StackMismatchError(msg)
        (template,) = stack.templates
        texts = [template.replace("{}", text) for text in stack.class_texts]
        return ConditionalHead.for_texts(self.backbone, net, texts, stack.text)

    def _check_open(self, stack: PromptStack) -> None:
        """Reject other labels where text features cannot be computed for them."""
        reason = ""
        if stack.has_class_contexts:
            reason = "class-specific text prompts, which exist only"
        elif stack.labels == "own":
            reason = "text features that its prompts alone do not give, made"
        if reason:
            msg = (
                f"Domain {stack.domain!r} has {reason} for its own {len(stack.class_names)} classes; "
                "other labels cannot be scored."
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
            for part, group in ((f"{tower}.boost", groups.boost), (f"{tower}.adapt", groups.adapt)):
                found = bundle.tensors[part].shape[-1] if group is not None else width
                if group is not None and (group.depth > n_layers or found != width):
                    msg = (
                        f"{part} is {group.depth} layers of width {found}; "
                        f"the tower has {n_layers} layers of width {width}."
                    )
                    raise StackMismatchError(msg)
        for name, letters in HEAD_SHAPES[kind].items():
            if letters.endswith("E") and bundle.tensors[name].shape[-1] != backbone.embed_dim:
                msg = (
                    f"{name} has {bundle.tensors[name].shape[-1]} columns; the backbone's joint space has "
                    f"{backbone.embed_dim}."
                )
                raise StackMismatchError(msg)
