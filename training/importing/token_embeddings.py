"""Token embeddings that a checkpoint keeps of its training texts: looked at for what they tell, then dropped.

`token_prefix` is the embedding of the start token, `token_suffix` what stood behind the prompts: words, class name,
full stop, end. They belong to the classes of training, so a bundle never holds them. But they show which CLIP the
prompts were trained on, whether the words behind the prompts are those the import assumes, and the order of the
classes.

Legend: K classes of training, S positions behind the prompts, W text width.
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
"""What these projects start short text prompts from; words beyond the prompts stay words."""


_UNKNOWN_BACKBONE: Final = (
    "The checkpoint holds no embeddings of its training texts, so nothing shows that it belongs to this backbone."
)


def default_template(n_tokens: int) -> str:
    """The text behind `n_tokens` prompts that start from `INITIAL_WORDS`: "of a {}." behind two of them."""
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
    """Take the embeddings of the training texts and compare them with what this import makes of them.

    Args:
        tensors: of the checkpoint.
        prefix: of the names.
        target: backbone and class names.
        template: what is taken to stand behind the prompts.
        tolerance: how far equal embeddings may be apart.
        is_class_specific: whether each class has its own prompts, so that names and order have to agree.
        is_only_backbone_check: whether nothing else in the checkpoint tells its backbone.

    Returns:
        Notes for the person.

    Raises:
        ImportFormatError: another backbone's embeddings, other words in front of the class names, or other classes
            under class-specific prompts.
    """
    backbone, kept = target.base_model.backbone, (f"{prefix}token_prefix", f"{prefix}token_suffix")
    if not all(name in tensors for name in kept):
        tensors.take_raw(lambda name: name in kept)
        return (_UNKNOWN_BACKBONE,) * is_only_backbone_check
    start_K1W = tensors.take(kept[0], "classes", 1, backbone.text_width)
    words_KSW = tensors.take(kept[1], "classes", "positions", backbone.text_width)
    seen = _SeenWords(backbone, words_KSW, tolerance)
    if not seen.are_equal(start_K1W, [backbone.tokenizer.sot_token_id]):
        msg = (
            f"The checkpoint was not trained on {backbone.arch} ({backbone.pretrained}): its start token has another "
            "embedding. Name the CLIP it was trained on with --backbone and --pretrained."
        )
        raise ImportFormatError(msg)
    words_in_front = template.partition("{}")[0].strip()
    ids = backbone.tokenizer.encode(words_in_front)
    if not seen.are_equal(words_KSW[:, : len(ids)], ids):
        msg = (
            f"The checkpoint was not trained with {words_in_front!r} between prompts and class names; "
            'say with --text what stood there, such as "{}.".'
        )
        raise ImportFormatError(msg)
    return _compare_classes(seen, target, template, is_class_specific=is_class_specific)


class _SeenWords:
    """The suffixes of K training texts, compared with texts."""

    def __init__(self, backbone: Backbone, words_KSW: Tensor, tolerance: Tolerance) -> None:
        self.backbone, self.words_KSW, self.tolerance = backbone, words_KSW, tolerance

    def are_equal(self, found_TW: Tensor, ids: list[int]) -> bool:
        """Whether embeddings [..., T, W] are those of the T ids."""
        table = self.backbone.clip.token_embedding.weight
        expected_TW = table.detach()[torch.tensor(ids, dtype=torch.long, device=table.device)].to("cpu", torch.float32)
        if found_TW.shape[-2] != len(ids):
            return False
        return len(ids) == 0 or bool(((found_TW - expected_TW).abs() <= self.tolerance.bound(expected_TW)).all())

    def is_text(self, index: int, text: str) -> bool:
        """Whether the training text of class `index` is this one, up to its end token."""
        tokenizer = self.backbone.tokenizer
        ids = [*tokenizer.encode(text), tokenizer.eot_token_id]
        return self.are_equal(self.words_KSW[index, : len(ids)], ids)


def _compare_classes(seen: _SeenWords, target: Target, template: str, *, is_class_specific: bool) -> tuple[str, ...]:
    names, n_trained = target.class_names, len(seen.words_KSW)
    if len(names) != n_trained:
        return (f"The checkpoint was trained on {n_trained} classes; this import is for {len(names)}.",)
    others = [name for index, name in enumerate(names) if not seen.is_text(index, template.replace("{}", name))]
    if not others:
        return ()
    if is_class_specific:
        msg = (
            f"Each class has its own prompts, but class {names.index(others[0]) + 1}, {others[0]!r}, is not the one "
            f"that was trained there ({len(others)} of {n_trained} differ); give the training classes in their order."
        )
        raise ImportFormatError(msg)
    return (
        f"{len(others)} of {n_trained} class texts differ from those in training, {others[0]!r} first: right for new "
        "classes; otherwise check the names, their order and --text.",
    )
