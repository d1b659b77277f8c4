"""Token embeddings of the training texts inside a checkpoint: template and classes are read from them.

`token_prefix` is the embedding of the start token; `token_suffix` is everything after the prompts: words, class name,
full stop, end token. They are specific to the training classes, so bundles do not contain them, but they identify the
CLIP, the template and the class order that the prompts were trained with.

Legend: K training classes, S positions after the prompts, W text width.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from prompted_clip.backbone import Backbone
from training.errors import ImportFormatError
from training.importing.clip_weights import Tolerance
from training.importing.conversion import Target
from training.importing.layout import CheckpointTensors

MAX_PROBES: Final = 50
"""Class names that are looked for among the training texts."""
INITIAL_WORDS: Final = "a photo of a"
"""Initial words of short text prompts in these projects; words beyond the prompts stay in the text."""


def default_template(n_tokens: int) -> str:
    """The template after `n_tokens` prompts initialised from `INITIAL_WORDS`; "of a {}." for two."""
    return " ".join([*INITIAL_WORDS.split()[n_tokens:], "{}."])


def check_token_embeddings(
    tensors: CheckpointTensors,
    prefix: str,
    target: Target,
    default: str,
    tolerance: Tolerance,
    *,
    is_class_specific: bool = False,
    is_only_backbone_check: bool = False,
) -> tuple[str, tuple[str, ...]]:
    """Take the embeddings of the training texts and find their template.

    Projects count the words of an initial text, not its tokens: of "a type of pet, a photo of a", eight words but nine
    tokens, the last one stays in the text, so that the template is "a {}.".

    Args:
        tensors: of the checkpoint.
        prefix: name prefix of the tensors.
        target: backbone, class names, and the template if the user named one.
        default: the method's usual text after the prompts.
        tolerance: allowed deviation.
        is_class_specific: whether each class has its own prompts, so that names and order must match.
        is_only_backbone_check: whether the checkpoint contains no CLIP weights that identify its backbone.

    Returns:
        The template, and notes for the user.

    Raises:
        ImportFormatError: embeddings of another backbone, words before the class names that are not the template's or
            may be part of the names, or class-specific prompts of other classes.
    """
    backbone, names = target.base_model.backbone, (f"{prefix}token_prefix", f"{prefix}token_suffix")
    template = target.template or default
    if not all(name in tensors for name in names):
        tensors.take_raw(lambda name: name in names)
        unverified = f"{'its backbone and ' * is_only_backbone_check}the text after the prompts, {template!r},"
        note = f"The checkpoint contains no embeddings of its training texts, so {unverified} could not be verified."
        return template, (note,)
    prefix_K1W = tensors.take(names[0], "classes", 1, backbone.text_width)
    suffix_KSW = tensors.take(names[1], "classes", "positions", backbone.text_width)
    texts = _TrainingTexts(backbone, suffix_KSW, tolerance)
    if not texts.are_equal(prefix_K1W, [backbone.tokenizer.sot_token_id]):
        msg = (
            f"The checkpoint was not trained on {backbone.arch} ({backbone.pretrained}): its start token has another "
            "embedding. Select the right CLIP with --backbone and --pretrained."
        )
        raise ImportFormatError(msg)
    template, notes = _find_template(texts, target, template)
    return template, notes + _compare_classes(texts, target, template, is_class_specific=is_class_specific)


class _TrainingTexts:
    """The embedded suffixes of K training texts."""

    def __init__(self, backbone: Backbone, suffix_KSW: Tensor, tolerance: Tolerance) -> None:
        self.backbone, self.suffix_KSW, self.tolerance = backbone, suffix_KSW, tolerance
        self._table: Tensor = backbone.clip.token_embedding.weight.detach()

    def are_equal(self, found_TW: Tensor, ids: list[int]) -> bool:
        """Whether embeddings [..., T, W] equal those of the T ids, within the tolerance."""
        return found_TW.shape[-2] == len(ids) and bool(self._is_close(found_TW, ids).all())

    def are_of(self, names: Sequence[str], template: str) -> list[bool]:
        """For each class, whether its suffix is the template with this name, up to the end token."""
        ids = [self._ids(name, template) for name in names]
        return [self.are_equal(self.suffix_KSW[index, : len(each)], each) for index, each in enumerate(ids)]

    def include_any(self, names: Sequence[str], template: str) -> bool:
        """Whether any suffix is the template with any of these names."""
        longest = self.suffix_KSW.shape[1]
        texts = [ids for name in names if len(ids := self._ids(name, template)) <= longest]
        return any(bool(self._is_close(self.suffix_KSW[:, : len(ids)], ids).flatten(1).all(1).any()) for ids in texts)

    def shared_ids(self) -> list[int]:
        """Ids of the tokens that all suffixes begin with, without an end token."""
        is_shared_S = (self.suffix_KSW == self.suffix_KSW[:1]).all(2).all(0)
        return self._decode(self.suffix_KSW[0, : int(is_shared_S.long().cumprod(0).sum())])

    def first_text(self) -> str:
        """The first suffix, for messages."""
        text: str = self.backbone.tokenizer.decode(self._decode(self.suffix_KSW[0]))
        return text.strip()

    def _ids(self, name: str, template: str) -> list[int]:
        tokenizer = self.backbone.tokenizer
        return [*tokenizer.encode(template.replace("{}", name)), tokenizer.eot_token_id]

    def _is_close(self, found_TW: Tensor, ids: list[int]) -> Tensor:
        expected_TW = self._table[torch.tensor(ids, dtype=torch.long, device=self._table.device)].to(
            "cpu", torch.float32
        )
        if len(ids) == 0:
            return torch.ones_like(found_TW, dtype=torch.bool)
        return (found_TW - expected_TW).abs() <= self.tolerance.bound(expected_TW)

    def _decode(self, found_TW: Tensor) -> list[int]:
        """Ids of the nearest token embeddings, up to the end token."""
        ids: list[int] = torch.cdist(found_TW.to(self._table.device), self._table.float()).argmin(1).tolist()
        eot = self.backbone.tokenizer.eot_token_id
        return ids[: ids.index(eot)] if eot in ids else ids


def _find_template(texts: _TrainingTexts, target: Target, template: str) -> tuple[str, tuple[str, ...]]:
    """The template of the training texts, and a note if it is not the expected one."""
    names = target.class_names[:MAX_PROBES]
    if texts.include_any(names, template):
        return template, ()
    tokenizer, shared_ids = texts.backbone.tokenizer, texts.shared_ids()
    after = template.partition("{}")[2]
    for n_ids in range(len(shared_ids) + 1):
        fitting = f"{tokenizer.decode(shared_ids[:n_ids])}{{}}{after}"
        if texts.include_any(names, fitting):
            if target.template is None:
                return fitting, (f"The text after the prompts is {fitting!r}, as in training.",)
            msg = f"The checkpoint was trained with --text {fitting!r}, found --text {template!r}. Omit --text."
            raise ImportFormatError(msg)
    first_ids = tokenizer.encode(template.partition("{}")[0].strip())
    if not texts.are_equal(texts.suffix_KSW[:, : len(first_ids)], first_ids):
        msg = (
            f"The checkpoint was not trained with {template!r} after the prompts: its first text is "
            f"{texts.first_text()!r}. Pass the words before the class name with --text, such as "
            f"{tokenizer.decode(shared_ids) + '{}.'!r}, or the names of the training classes."
        )
        raise ImportFormatError(msg)
    if target.template is None and len(shared_ids) > len(first_ids):
        words = tokenizer.decode(shared_ids)
        msg = (
            f"The training texts begin with {words.strip()!r}, such as {texts.first_text()!r}, and none is of these "
            f"classes. Pass --text {words + '{}.'!r} if that precedes the class names, or --text {template!r} if it is "
            "part of them."
        )
        raise ImportFormatError(msg)
    return template, ()


def _compare_classes(
    texts: _TrainingTexts, target: Target, template: str, *, is_class_specific: bool
) -> tuple[str, ...]:
    names, n_trained = target.class_names, len(texts.suffix_KSW)
    if len(names) != n_trained:
        return (f"The checkpoint was trained on {n_trained} classes; this import has {len(names)}.",)
    others = [name for name, is_same in zip(names, texts.are_of(names, template), strict=True) if not is_same]
    if not others:
        return ()
    if is_class_specific:
        msg = (
            f"The prompts are class-specific, but class {names.index(others[0]) + 1}, {others[0]!r}, differs from "
            f"training ({len(others)} of {n_trained} differ). Pass the training classes in their order."
        )
        raise ImportFormatError(msg)
    return (
        f"{len(others)} of {n_trained} class texts differ from training, the first is {others[0]!r}. This is expected "
        "for new classes; otherwise check the names, their order and --text.",
    )
