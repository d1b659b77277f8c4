"""PromptKD's student: image prompts, and a projector into the teacher's embedding space.

The student uses the teacher's text features g_T instead of its own. Two linear layers, with batch norm and ReLU between
them, project its image embedding v to their width:

    z_S = s_S · <unit(h(v)), g_T>,   h(v) = W2 relu(norm(W1 v + b1)) + b2

On a boosted model, CasPL's frozen boosting prompts stay in both towers, and the image prompts are adapting prompts.
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
    """Trainable image prompts and projector.

    Args:
        base_model: the frozen CLIP, boosted or plain; a depth beyond the image tower's number of layers is clamped to
            it.
        text_features_KE2: the teacher's text features, unit norm.
        recipe: token count, depth and seed; its text settings have no effect.
    """

    def __init__(self, base_model: PromptedBackbone, text_features_KE2: Tensor, recipe: BoostRecipe) -> None:
        super().__init__()
        self.base_model = base_model
        self.backbone: Backbone = base_model.backbone
        backbone = self.backbone
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
        """Image prompts and projector, at the recipe's rate."""
        return [ParameterGroup(list(self.parameters()))]

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """z_S: [B, K]; in training mode the batch norm uses and tracks the statistics of batches of several images."""
        hidden_BH = self.hidden(self.base_model.embed_images(images_BCHW, self.image).float())
        norm = self.norm
        if len(hidden_BH) == 1:  # a last batch of one image has no variance: normalise it as in serving
            hidden_BH = nn.functional.batch_norm(hidden_BH, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        else:
            hidden_BH = norm(hidden_BH)
        features = unit_norm(self.out(hidden_BH.relu()))
        return class_scores(self.backbone.logit_scale, features, self._text_features_KE2)

    def fold(self) -> tuple[PromptedBackbone, ExportedPrompts]:
        """Return the prompted backbone, and the projector with batch norm folded into its first layer.

        The image prompts become boosting prompts of a plain model, and adapting prompts of a boosted one.
        """
        variance, mean = self.norm.running_var, self.norm.running_mean
        if variance is None or mean is None:
            raise TypeError("the batch norm has no running statistics to fold")
        scale = self.norm.weight / torch.sqrt(variance + self.norm.eps)
        projector = {
            "hidden.weight": self.hidden.weight * scale[:, None],
            "hidden.bias": (self.hidden.bias - mean) * scale + self.norm.bias,
            "weight": self.out.weight,
            "bias": self.out.bias,
        }
        is_boosted = self.base_model.boost_digest is not None
        image = self.image.detach()
        exported = ExportedPrompts(
            image_adapt=image if is_boosted else None,
            text_features_KE=self._text_features_KE2,
            is_closed_vocabulary=True,
            projector={name: tensor.detach().clone() for name, tensor in projector.items()},
        )
        return self.base_model if is_boosted else PromptedBackbone(self.backbone, image), exported
