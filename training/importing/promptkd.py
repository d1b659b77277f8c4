"""PromptKD's student checkpoints: image prompts, a projector to the teacher's space, and CLIP's image tower.

The projector consists of two 1x1 convolutions with batch norm and ReLU between them. It takes unnormalised image
embeddings; its output is normalised. It is exported as two linear layers, with batch norm folded into the first. The
checkpoint does not contain the teacher's text features. Source: PromptKD's repository, `trainers/promptkd.py`.

Legend: K classes, E joint width, F teacher's joint width, H hidden width.
"""

from typing import Final

import torch
from torch import Tensor

from prompted_clip.internals import unit_norm
from training.adapting.method import ExportedPrompts
from training.errors import ImportFormatError
from training.importing.clip_weights import FLOAT16, check_clip_weights
from training.importing.conversion import Converted, Target
from training.importing.layout import CheckpointTensors, Layout
from training.importing.tower_prompts import IMAGE_PROMPTS, take_image_prompts

_PROJECTOR: Final = "VPT_image_trans.conv1"
_EPSILON: Final = 1e-5
"""torch's default for batch norm, which PromptKD uses."""

LAYOUT: Final = Layout(
    method="promptkd",
    title="a PromptKD checkpoint",
    model_name="VLPromptLearner",
    tensors=(
        *IMAGE_PROMPTS,
        f"{_PROJECTOR}.0.weight [hidden, joint width, 1, 1], .bias [hidden]",
        f"{_PROJECTOR}.1.weight, .bias, .running_mean, .running_var [hidden]",
        f"{_PROJECTOR}.3.weight [teacher width, hidden, 1, 1], .bias [teacher width]",
    ),
    matches=lambda names: f"{_PROJECTOR}.0.weight" in names,
)


def convert(tensors: CheckpointTensors, target: Target) -> Converted:
    """Convert image prompts, projector and normalised text features of the teacher.

    Raises:
        ImportFormatError: not a PromptKD checkpoint, or not for this backbone; or text features are missing, or do not
            match classes and projector.
    """
    backbone = target.base_model.backbone
    image_LPW = take_image_prompts(tensors, backbone)
    projector = _take_projector(tensors, backbone.embed_dim)
    notes = check_clip_weights(tensors, backbone, FLOAT16)
    tensors.finish()
    features_KF = _check_features(target, n_columns=projector["weight"].shape[0])
    exported = ExportedPrompts(
        image_adapt=image_LPW, text_features_KE=features_KF, projector=projector, is_closed_vocabulary=True
    )
    return Converted(exported, target.template or "{}.", notes)


def _take_projector(tensors: CheckpointTensors, embed_dim: int) -> dict[str, Tensor]:
    """The projector as two linear layers: W1' = a * W1, b1' = a * (b1 - mean) + beta.

    a = gamma / sqrt(variance + epsilon), per hidden unit.
    """
    first_HE = _take_convolution(tensors, f"{_PROJECTOR}.0.weight", "hidden", embed_dim)
    n_hidden = first_HE.shape[0]
    bias_H = tensors.take(f"{_PROJECTOR}.0.bias", n_hidden).double()
    gamma_H, beta_H, mean_H, variance_H = (
        tensors.take(f"{_PROJECTOR}.1.{name}", n_hidden).double()
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    tensors.take_raw(lambda name: name == f"{_PROJECTOR}.1.num_batches_tracked")
    if bool((variance_H < 0).any()):
        tensors.fail(f"{_PROJECTOR}.1.running_var has negative values")
    last_FH = _take_convolution(tensors, f"{_PROJECTOR}.3.weight", "teacher width", n_hidden)
    last_bias_F = tensors.take(f"{_PROJECTOR}.3.bias", last_FH.shape[0])
    scale_H = gamma_H / torch.sqrt(variance_H + _EPSILON)
    return {
        "hidden.weight": (scale_H[:, None] * first_HE.double()).float(),
        "hidden.bias": (scale_H * (bias_H - mean_H) + beta_H).float(),
        "weight": last_FH,
        "bias": last_bias_F,
    }


def _take_convolution(tensors: CheckpointTensors, name: str, n_out: int | str, n_in: int) -> Tensor:
    """The weight of a 1x1 convolution, stored as [out, in, 1, 1] or [out, in], as a matrix."""
    is_matrix = tensors.rank(name) == 2
    return tensors.take(name, n_out, n_in, *(() if is_matrix else (1, 1))).flatten(1)


def _check_features(target: Target, n_columns: int) -> Tensor:
    """The teacher's text features [K, F], float32, unit norm."""
    features_KF, expected = target.text_features_KE, [len(target.class_names), n_columns]
    if features_KF is None:
        msg = (
            f"PromptKD checkpoints contain no text features. Pass the teacher's, {expected} for these classes, with "
            "--text-features, for example the bundle of an imported PromptSRC teacher."
        )
        raise ImportFormatError(msg)
    if list(features_KF.shape) != expected:
        msg = (
            f"The text features are {list(features_KF.shape)}, expected {expected}: one row per class name, with the "
            "width of the projector's output. Use those of the student's own teacher."
        )
        raise ImportFormatError(msg)
    norms_K = features_KF.float().norm(dim=1)
    if not bool((norms_K.isfinite() & (norms_K > 0)).all()):
        msg = "The text features contain a zero row, NaN or infinity; recompute them."
        raise ImportFormatError(msg)
    return unit_norm(features_KF.detach().cpu().float())
