"""CoOp checkpoints: one context, or one per class.

ProGrad and KgCoOp save the same tensors. Source: CoOp's repository, `trainers/coop.py`.

Legend: K classes, N context tokens, W text width, E joint width.
"""

from typing import Final

import torch

from training.adapting.method import ExportedPrompts
from training.adapting.text_context import CONTEXT_TEMPLATE, place_context
from training.errors import ImportFormatError
from training.importing.clip_weights import FLOAT16
from training.importing.conversion import Converted, Target
from training.importing.layout import CheckpointTensors, Layout
from training.importing.token_embeddings import check_token_embeddings

LAYOUT: Final = Layout(
    method="coop",
    title="a CoOp checkpoint",
    model_name="prompt_learner",
    tensors=("ctx [tokens, text width] or [classes, tokens, text width]",),
    matches=lambda names: "ctx" in names,
)


def convert(tensors: CheckpointTensors, target: Target) -> Converted:
    """Convert the context to a text group, or to text features if the class name is not at its end.

    Raises:
        ImportFormatError: not a CoOp checkpoint, or not for these classes or this backbone.
        TextTooLongError: a class name and the prompts exceed the text tower's context length.
    """
    base_model, n_classes = target.base_model, len(target.class_names)
    is_class_specific = tensors.rank("ctx") == 3
    leading = ("classes",) if is_class_specific else ()
    context = tensors.take("ctx", *leading, "tokens", base_model.backbone.text_width)
    n_tokens = tensors.count_tokens(context)
    if is_class_specific and len(context) != n_classes:
        msg = (
            f"The checkpoint has contexts for {len(context)} classes, but {n_classes} names were given. Pass the "
            "classes it was trained on, in their order."
        )
        raise ImportFormatError(msg)
    template, notes = check_token_embeddings(
        tensors,
        "",
        target,
        CONTEXT_TEMPLATE,
        FLOAT16,
        is_class_specific=is_class_specific,
        is_only_backbone_check=True,
    )
    tensors.finish()
    if target.position == "end":
        exported = ExportedPrompts(text_adapt=context.unsqueeze(-3), is_closed_vocabulary=is_class_specific)
        return Converted(exported, template, notes)
    if template != CONTEXT_TEMPLATE:
        msg = (
            f"With --position {target.position}, the text must be {CONTEXT_TEMPLATE!r}, found {template!r}. Omit "
            "--text, or import with --position end."
        )
        raise ImportFormatError(msg)
    texts = place_context(base_model, target.class_names, n_tokens, target.position)
    with torch.no_grad():
        features_KE = texts.encode(context.to(base_model.backbone.device)).to("cpu", torch.float32)
    return Converted(ExportedPrompts(text_features_KE=features_KE, is_closed_vocabulary=True), template, notes)
