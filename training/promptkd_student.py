"""PromptKD's student: image prompts and a projector into the teacher's space, where the teacher's text features wait.

The student shares the teacher's text features g_T instead of having its own; two linear layers with a batch norm and a
ReLU between them bring its image embedding to their width:

    z_S = s_S · <unit(h(v)), g_T>,   h(v) = W2 relu(norm(W1 v + b1)) + b2

Source: PromptKD (arXiv 2403.02781), section 3.3, and its repository for the projector's layers.
Legend: B images, K classes, E student's joint width, E2 teacher's, H hidden width, L prompt layers, P prompt tokens.
"""

import torch
from torch import Tensor, nn

from prompted_clip.backbone import Backbone
from prompted_clip.internals import unit_norm
from training.adapting.method import ExportedPrompts
from training.initial_prompts import random_prompts
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.recipe import BoostRecipe
from training.scores import class_scores


class PromptKDStudent(nn.Module):
    """Image prompts and projector in the making.

    Args:
        backbone: whose image tower the prompts fit; a depth beyond its layers is cut to it.
        text_features_KE2: the teacher's text features, unit norm.
        recipe: token count, depth and seed; its text keys have no effect.
    """

    def __init__(self, backbone: Backbone, text_features_KE2: Tensor, recipe: BoostRecipe) -> None:
        super().__init__()
        self.backbone = backbone
        self._text_features_KE2 = text_features_KE2.to(backbone.device)
        generator = torch.Generator().manual_seed(recipe.seed)
        depth = min(recipe.image_depth, backbone.n_vision_layers)
        self.image = nn.Parameter(
            random_prompts(depth, recipe.image_tokens, backbone.vision_width, generator).to(backbone.device)
        )
        width = text_features_KE2.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.hidden = nn.Linear(backbone.embed_dim, width).to(backbone.device)
            self.norm = nn.BatchNorm1d(width).to(backbone.device)
            self.out = nn.Linear(width, width).to(backbone.device)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The image prompts and the projector, at one rate."""
        return [ParameterGroup(list(self.parameters()))]

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """z_S: [B, K]; while training, the batch norm uses the batch's own statistics and notes them."""
        hidden = self.norm(self.hidden(self._prompted().embed_images(images_BCHW).float()))
        features = unit_norm(self.out(hidden.relu()))
        return class_scores(self.backbone.logit_scale, features, self._text_features_KE2)

    def fold(self) -> tuple[PromptedBackbone, ExportedPrompts]:
        """The prompted backbone, and the projector with its batch norm folded into the first layer."""
        variance, mean = self.norm.running_var, self.norm.running_mean
        if variance is None or mean is None:
            raise TypeError("the batch norm keeps no running statistics, so it cannot be folded")
        scale = self.norm.weight / torch.sqrt(variance + self.norm.eps)
        projector = {
            "hidden.weight": self.hidden.weight * scale[:, None],
            "hidden.bias": (self.hidden.bias - mean) * scale + self.norm.bias,
            "weight": self.out.weight,
            "bias": self.out.bias,
        }
        exported = ExportedPrompts(
            text_features_KE=self._text_features_KE2,
            is_closed_vocabulary=True,
            projector={name: tensor.detach().clone() for name, tensor in projector.items()},
        )
        image = self._prompted().image_boost
        return PromptedBackbone(self.backbone, image.detach() if image is not None else None), exported

    def _prompted(self) -> PromptedBackbone:
        return PromptedBackbone(self.backbone, self.image if self.image.shape[1] else None)
