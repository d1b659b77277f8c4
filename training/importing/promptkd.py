"""PromptKD's student checkpoints: image prompts, a projector to the teacher's space, and CLIP's image tower.

The projector is two convolutions of size 1 with batch norm and a ReLU between them, on image embeddings that were not
brought to length 1; after it they are. It serves as two linear layers, batch norm folded into the first. The teacher's
text features are not in the file. Source: PromptKD's repository, `trainers/promptkd.py`.

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
"""Of torch's batch norm, which PromptKD leaves as it is."""

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
    """Image prompts, the projector, and the teacher's text features at length 1.

    Raises:
        ImportFormatError: the checkpoint is none of PromptKD's, or not for this backbone; text features are missing
            or do not fit classes and projector.
    """
    backbone = target.base_model.backbone
    image_LPW = take_image_prompts(tensors, backbone)
    projector = _take_projector(tensors, backbone.embed_dim)
    notes = check_clip_weights(tensors, backbone, FLOAT16)
    tensors.finish()
    features_KF = _fitting_features(target, n_columns=projector["weight"].shape[0])
    exported = ExportedPrompts(
        image_adapt=image_LPW, text_features_KE=features_KF, projector=projector, is_closed_vocabulary=True
    )
    return Converted(exported, target.template or "{}.", notes)


def _take_projector(tensors: CheckpointTensors, embed_dim: int) -> dict[str, Tensor]:
    """The projector as two linear layers: W1' = a * W1, b1' = a * (b1 - mean) + beta.

    a = gamma / sqrt(variance + epsilon), one number per hidden unit.
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
        tensors.refuse(f"{_PROJECTOR}.1.running_var has negative values, a variance has none")
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
    """The weight of a convolution of size 1 as a matrix [out, in], however it is stored."""
    is_matrix = tensors.rank(name) == 2
    return tensors.take(name, n_out, n_in, *(() if is_matrix else (1, 1))).flatten(1)


def _fitting_features(target: Target, n_columns: int) -> Tensor:
    """The teacher's text features at length 1, [K, F] float32."""
    features_KF, expected = target.text_features_KE, [len(target.class_names), n_columns]
    if features_KF is None:
        msg = (
            "PromptKD answers in its teacher's space, and its checkpoints hold no text features: give the "
            f"teacher's with --text-features, {expected} for these classes, such as the bundle of an imported "
            "PromptSRC teacher."
        )
        raise ImportFormatError(msg)
    if list(features_KF.shape) != expected:
        msg = (
            f"The text features are {list(features_KF.shape)}, expected {expected}: a row per class name, as wide "
            "as the projector's output; take them from the teacher that this student learned from."
        )
        raise ImportFormatError(msg)
    lengths_K = features_KF.float().norm(dim=1)
    if not bool((lengths_K.isfinite() & (lengths_K > 0)).all()):
        msg = "The text features have a row of zeros, or NaN or infinity in it; compute them again."
        raise ImportFormatError(msg)
    return unit_norm(features_KF.detach().cpu().float())
