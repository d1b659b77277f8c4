"""The teacher of phase 1: a larger frozen CLIP, with or without prompts.

Legend: B rows, C/H/W image, K classes, E joint width.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone
from prompted_clip.model import PromptedClip
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.transfers import to_device
from prompted_clip.vision import encode_image
from training.errors import BoostBundleError
from training.scores import class_scores


class Teacher:
    """Scores images over the domain's classes.

    Args:
        backbone: the larger CLIP.
        class_names: all classes of the domain, base and new.
        template: hand-written prompt template, used if `bundle` is None.
        bundle: prompts trained on this backbone, as in PromptKD; None for the plain teacher.

    Raises:
        StackMismatchError: the bundle was made for another backbone, or does not support these classes.
        BoostBundleError: the bundle has a conditional head.
        TextTooLongError: a class name exceeds the text tower's context length.
    """

    def __init__(
        self, backbone: Backbone, class_names: Sequence[str], template: str, bundle: Bundle | None = None
    ) -> None:
        self.backbone = backbone
        self.digest = bundle.digest if bundle is not None else None
        model = PromptedClip(backbone)
        if bundle is None:
            stack = model.plain_stack("teacher", class_names, [template])
        else:
            stack = model.with_labels(model.load_stack(bundle), class_names)
        if stack.text_features is None:
            msg = "The teacher's bundle has a conditional head; a teacher needs fixed text features."
            raise BoostBundleError(msg)
        self._image = stack.image.to(backbone.device) if stack.image is not None else None
        # Cloned because inference-mode tensors cannot be used in autograd.
        self.text_features_KE = stack.text_features.clone().to(backbone.device)

    @staticmethod
    def joined(teachers: Sequence["Teacher"]) -> "Teacher":
        """One teacher with the classes of all, in order; they have the same backbone and the same prompts."""
        joined = copy.copy(teachers[0])
        joined.text_features_KE = torch.cat([teacher.text_features_KE for teacher in teachers])
        return joined

    @torch.no_grad()
    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """z_T = s_T · <f_T(x), g_T>: float32 [B, K] on the teacher's device.

        Args:
            pixels_BCHW: uint8 views.
        """
        images = normalize_pixels(to_device(pixels_BCHW, self.backbone.device), self.backbone.preprocess)
        features_BE = encode_image(self.backbone, images, self._image)
        return class_scores(self.backbone.logit_scale, features_BE, self.text_features_KE)
