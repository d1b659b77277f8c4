"""Loads prompt stacks: from a bundle, from class names, or from another stack with other classes.

Stacks are loaded into host memory, pinned if the device is a GPU. Only text encoding runs on the device.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompt_store.bundle import Bundle
from prompt_store.contents import HEAD_SHAPES, HeadKind, head_kind
from prompt_store.manifest import StackSpec
from prompted_clip.backbone import Backbone
from prompted_clip.errors import StackMismatchError
from prompted_clip.heads import ClassHead, ConditionalHead, Head, Projector, TwoLayers
from prompted_clip.prompts import join_groups
from prompted_clip.stack import PromptStack
from prompted_clip.text import TEXTS_AT_ONCE, encode_classes, tokenize
from prompted_clip.transfers import map_tensors


class StackLoader:
    """Loads stacks for one backbone; limits as in `PromptedClip`, progress is reported after every text forward."""

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
    def from_bundle(self, bundle: Bundle) -> PromptStack:
        """Load a bundle from `read_bundle`; the device is not used.

        Raises:
            StackMismatchError: made for another backbone, deeper than a tower, or too many classes for a conditional
                head.
            TextTooLongError: a class of a conditional head does not fit the text tower together with the prompts.
        """
        manifest, dtype = bundle.manifest, self.backbone.dtype
        kind = head_kind(manifest.stack, bundle.tensors)
        self._check_backbone(bundle, kind)
        precise = torch.promote_types(dtype, torch.float32)
        tensors = {name: torch.from_numpy(array.copy()).to(precise) for name, array in bundle.tensors.items()}
        groups = {name: tensor.to(dtype) for name, tensor in tensors.items() if name.endswith((".boost", ".adapt"))}
        image_boost, image_adapt = groups.get("image.boost"), groups.get("image.adapt")
        stack = PromptStack(
            domain=manifest.domain,
            digest=bundle.digest,
            class_names=tuple(c.name for c in manifest.classes),
            class_texts=tuple(c.text for c in manifest.classes),
            templates=tuple(manifest.templates),
            logit_scale=manifest.logit_scale,
            image_boost=image_boost,
            image_adapt=image_adapt,
            text_boost=groups.get("text.boost"),
            text_adapt=groups.get("text.adapt") if kind != "conditional" else None,
            text_features=tensors.get("text.features"),
            image=join_groups([image_boost, image_adapt]),
            labels=manifest.stack.labels,
            image_digest=_image_digest(bundle.tensors),
        )
        if (calibration := manifest.calibration) is not None:
            stack = replace(stack, temperature=calibration.temperature, abstain=calibration.abstain)
        head = self._head(stack, kind, tensors, manifest.stack)
        return self._in_host_memory(replace(stack, head=head))

    @torch.inference_mode()
    def plain(self, domain: str, class_names: Sequence[str], templates: Sequence[str]) -> PromptStack:
        """The zero-shot baseline: no prompts, text features of the plain backbone.

        Raises:
            TextTooLongError: a class does not fit the text tower.
        """
        plain = PromptStack(
            domain=domain,
            digest=None,
            class_names=tuple(class_names),
            class_texts=tuple(class_names),
            templates=tuple(templates),
            logit_scale=self.backbone.logit_scale,
        )
        return self._with_text_features(plain)

    @torch.inference_mode()
    def boost_only(self, stack: PromptStack) -> PromptStack:
        """A stack with the boosting prompts only, without adapting prompts, heads and calibration.

        The classes are encoded again, unless their text features are those of the boosting prompts.

        Raises:
            StackMismatchError: the stack has no boosting prompts, or no template to encode its classes with.
        """
        if stack.image_boost is None and stack.text_boost is None:
            msg = f"Domain {stack.domain!r} has no boosting prompts; stack=boost requires them."
            raise StackMismatchError(msg)
        if stack.image_adapt is None and stack.text_adapt is None:
            is_calibrated = stack.temperature != 1 or stack.abstain
            is_plain = stack.head is None and stack.labels == "any" and not is_calibrated
            # A projector without adapting prompts was learned with the boosting prompts and belongs to them.
            if is_plain or isinstance(stack.head, Projector):
                return stack
            if stack.labels == "any" and isinstance(stack.head, ClassHead | None):
                return replace(stack, head=None, temperature=1.0, abstain={})
        boosted = replace(
            stack,
            image_adapt=None,
            text_adapt=None,
            image=join_groups([stack.image_boost]),
            labels="any",
            head=None,
            temperature=1.0,
            abstain={},
        )
        if stack.image_adapt is not None:
            boost = {} if stack.image_boost is None else {"image.boost": stack.image_boost.float().cpu().numpy()}
            boosted = replace(boosted, image_digest=_image_digest(boost))
        return self._with_text_features(boosted)

    @torch.inference_mode()
    def with_labels(self, stack: PromptStack, labels: Sequence[str]) -> PromptStack:
        """Open vocabulary: a stack with the same prompts and other classes, at least one.

        A class head, the temperature and the abstention thresholds are dropped, as they are for the bundle's own
        classes only; a conditional head is kept.

        Raises:
            StackMismatchError: the stack can serve its own classes only, has no template, or `labels` are too many for
                a conditional head.
            TextTooLongError: a label does not fit the text tower together with the prompts.
        """
        reason = ""
        if stack.text_adapt is not None and stack.text_adapt.ndim == 4:
            reason = "class-specific text prompts"
        elif stack.labels == "own":
            reason = "text features that its prompts cannot compute"
        if reason:
            msg = (
                f"Domain {stack.domain!r} supports only its own {len(stack.class_names)} classes, because it has "
                f"{reason}; other labels cannot be scored."
            )
            raise StackMismatchError(msg)
        names = tuple(labels)
        opened = replace(stack, class_names=names, class_texts=names, temperature=1.0, abstain={})
        if isinstance(stack.head, ConditionalHead):
            head = self._conditional_head(opened, stack.head.context_NW, stack.head.shift)
            return self._in_host_memory(replace(opened, head=head))
        return self._with_text_features(replace(opened, head=None))

    def _in_host_memory(self, stack: PromptStack) -> PromptStack:
        """A copy in host memory; for a GPU the tensors that forwards read are pinned."""
        stack = map_tensors(stack, Tensor.cpu)
        if self.backbone.device.type != "cuda":
            return stack
        pinned = map_tensors(stack.without_groups(), Tensor.pin_memory)
        return replace(stack, image=pinned.image, text_features=pinned.text_features, head=pinned.head)

    def _with_text_features(self, stack: PromptStack) -> PromptStack:
        """A copy in host memory, its classes encoded with its templates and text prompts."""
        if not stack.templates:
            msg = f"Domain {stack.domain!r} has no template, so no text can be encoded for it."
            raise StackMismatchError(msg)
        grid = stack.text
        features_KE = encode_classes(
            self.backbone,
            stack.class_texts,
            stack.templates,
            grid and grid.to(self.backbone.device),
            max_texts=min(TEXTS_AT_ONCE, self._max_text_rows),
            on_progress=self._on_progress,
        )
        return self._in_host_memory(replace(stack, text_features=features_KE))

    def _head(self, stack: PromptStack, kind: HeadKind, tensors: Mapping[str, Tensor], spec: StackSpec) -> Head | None:
        if kind == "conditional":
            shift = _two_layers(tensors, "conditional.linear1", "conditional.linear2")
            return self._conditional_head(stack, tensors["text.adapt"][0], shift)
        if kind == "projector":
            return Projector(_two_layers(tensors, "head.hidden", "head"))
        if spec.head_share is None:
            return None
        weight_KE, bias_K = tensors["head.weight"], tensors["head.bias"]
        return ClassHead(weight_KE, bias_K, spec.head_share, reads_unit=spec.head_input == "unit")

    def _conditional_head(self, stack: PromptStack, context_NW: Tensor, shift: TwoLayers) -> ConditionalHead:
        n_classes, limit = len(stack.class_texts), self._max_conditional_classes
        if n_classes > limit:
            msg = (
                f"Domain {stack.domain!r} has a conditional head and {n_classes} classes, more than "
                f"max_conditional_classes={limit}. Use fewer classes, or raise the limit."
            )
            raise StackMismatchError(msg)
        (template,) = stack.templates
        texts = [template.replace("{}", text) for text in stack.class_texts]
        boost = stack.text
        n_prompts = len(context_NW) + (boost.n_tokens if boost is not None else 0)
        ids_KT, eot_K = tokenize(self.backbone, texts, n_prompts=n_prompts)
        return ConditionalHead(context_NW, shift, boost, ids_KT, eot_K)

    def _check_backbone(self, bundle: Bundle, kind: HeadKind) -> None:
        manifest, backbone = bundle.manifest, self.backbone
        if difference := manifest.backbone.first_difference(backbone.spec()):
            fact, found, expected = difference
            msg = (
                f"The bundle for domain {manifest.domain!r} was made for {manifest.backbone.arch} with {fact} {found}; "
                f"this backbone, {backbone.arch}, has {expected}. Retrain it for this backbone, or load that backbone."
            )
            raise StackMismatchError(msg)
        shapes = {name: array.shape for name, array in bundle.tensors.items()}
        towers = {
            "image": (backbone.n_vision_layers, backbone.vision_width),
            "text": (backbone.n_text_layers, backbone.text_width),
        }
        for name in ("image.boost", "image.adapt", "text.boost", "text.adapt"):
            if name in shapes:
                depth, _, found = shapes[name][-3:]
                n_layers, width = towers[name.split(".")[0]]
                if depth > n_layers or found != width:
                    there = f"the tower has {n_layers} layers of width {width}"
                    raise StackMismatchError(f"{name} is {depth} layers of width {found}; {there}.")
        for name, letters in HEAD_SHAPES[kind].items():
            found = shapes[name][-1]
            if letters.endswith("E") and found != backbone.embed_dim:
                msg = f"{name} has {found} columns; the backbone's joint space has {backbone.embed_dim}."
                raise StackMismatchError(msg)


def _image_digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """See `PromptStack.image_digest`."""
    digest = hashlib.sha256()
    names = sorted({"image.boost", "image.adapt"} & tensors.keys())
    for name in names:
        values = np.ascontiguousarray(tensors[name], dtype="<f4")
        digest.update(json.dumps([name, values.shape]).encode())
        digest.update(values.tobytes())
    return digest.hexdigest() if names else ""


def _two_layers(tensors: Mapping[str, Tensor], hidden: str, output: str) -> TwoLayers:
    return TwoLayers(*(tensors[f"{layer}.{part}"] for layer in (hidden, output) for part in ("weight", "bias")))
