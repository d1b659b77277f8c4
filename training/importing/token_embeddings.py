"""Token embeddings of the training texts inside a checkpoint: checked, then dropped.

`token_prefix` is the embedding of the start token; `token_suffix` is everything after the prompts: words, class name,
full stop, end token. They are specific to the training classes, so bundles do not contain them, but they identify the
CLIP, the template and the class order that the prompts were trained with.

Legend: K training classes, S positions after the prompts, W text width.
"""

from typing import Final

import torch
from torch import Tensor

from prompted_clip.backbone import Backbone
from training.errors import ImportFormatError
from training.importing.clip_weights import Tolerance
from training.importing.conversion import Target
from training.importing.layout import CheckpointTensors

INITIAL_WORDS: Final = "a photo of a"
"""Initial words of short text prompts in these projects; words beyond the prompts stay in the text."""

_UNKNOWN_BACKBONE: Final = (
    "The checkpoint contains no embeddings of its training texts, so its backbone could not be verified."
)


def default_template(n_tokens: int) -> str:
    """The template after `n_tokens` prompts initialised from `INITIAL_WORDS`; "of a {}." for two."""
    return " ".join([*INITIAL_WORDS.split()[n_tokens:], "{}."])


def check_token_embeddings(
    tensors: CheckpointTensors,
    prefix: str,
    target: Target,
    template: str,
    tolerance: Tolerance,
    *,
    is_class_specific: bool = False,
    is_only_backbone_check: bool = False,
) -> tuple[str, ...]:
    """Take the embeddings of the training texts and compare them with those of the import.

    Args:
        tensors: of the checkpoint.
        prefix: name prefix of the tensors.
        target: backbone and class names.
        template: text after the prompts, as assumed by the import.
        tolerance: allowed deviation.
        is_class_specific: whether each class has its own prompts, so that names and order must match.
        is_only_backbone_check: whether the checkpoint contains no CLIP weights that identify its backbone.

    Returns:
        Notes for the user.

    Raises:
        ImportFormatError: embeddings of another backbone, other words before the class names, or class-specific
            prompts of other classes.
    """
    backbone, names = target.base_model.backbone, (f"{prefix}token_prefix", f"{prefix}token_suffix")
    if not all(name in tensors for name in names):
        tensors.take_raw(lambda name: name in names)
        return (_UNKNOWN_BACKBONE,) * is_only_backbone_check
    prefix_K1W = tensors.take(names[0], "classes", 1, backbone.text_width)
    suffix_KSW = tensors.take(names[1], "classes", "positions", backbone.text_width)
    texts = _TrainingTexts(backbone, suffix_KSW, tolerance)
    if not texts.are_equal(prefix_K1W, [backbone.tokenizer.sot_token_id]):
        msg = (
            f"The checkpoint was not trained on {backbone.arch} ({backbone.pretrained}): its start token has another "
            "embedding. Select the right CLIP with --backbone and --pretrained."
        )
        raise ImportFormatError(msg)
    first_words = template.partition("{}")[0].strip()
    ids = backbone.tokenizer.encode(first_words)
    if not texts.are_equal(suffix_KSW[:, : len(ids)], ids):
        msg = (
            f"The checkpoint was not trained with {first_words!r} between prompts and class names. "
            'Pass the text after the prompts with --text, such as "{}.".'
        )
        raise ImportFormatError(msg)
    return _compare_classes(texts, target, template, is_class_specific=is_class_specific)


class _TrainingTexts:
    """The embedded suffixes of K training texts."""

    def __init__(self, backbone: Backbone, suffix_KSW: Tensor, tolerance: Tolerance) -> None:
        self.backbone, self.suffix_KSW, self.tolerance = backbone, suffix_KSW, tolerance

    def are_equal(self, found_TW: Tensor, ids: list[int]) -> bool:
        """Whether embeddings [..., T, W] equal those of the T ids, within the tolerance."""
        table = self.backbone.clip.token_embedding.weight
        expected_TW = table.detach()[torch.tensor(ids, dtype=torch.long, device=table.device)].to("cpu", torch.float32)
        if found_TW.shape[-2] != len(ids):
            return False
        return len(ids) == 0 or bool(((found_TW - expected_TW).abs() <= self.tolerance.bound(expected_TW)).all())

    def is_text(self, index: int, text: str) -> bool:
        """Whether the suffix of class `index` is `text`, up to the end token."""
        tokenizer = self.backbone.tokenizer
        ids = [*tokenizer.encode(text), tokenizer.eot_token_id]
        return self.are_equal(self.suffix_KSW[index, : len(ids)], ids)


def _compare_classes(
    texts: _TrainingTexts, target: Target, template: str, *, is_class_specific: bool
) -> tuple[str, ...]:
    names, n_trained = target.class_names, len(texts.suffix_KSW)
    if len(names) != n_trained:
        return (f"The checkpoint was trained on {n_trained} classes; this import has {len(names)}.",)
    others = [name for index, name in enumerate(names) if not texts.is_text(index, template.replace("{}", name))]
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
