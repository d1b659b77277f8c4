"""MaPLe: image prompts are linear images of text prompts, layer by layer.

Source: MaPLe (arXiv 2210.03117), section 3.2. At each layer l one linear map F_l couples the towers:

    V_l = F_l(T_l),   L = CE(z, y),   z_c = s · <f(x; V), g_c(T)>

It knows the prompts, the couplings and their loss; it does not know how it is trained.

Legend: B rows, K classes, L prompt layers, P prompt tokens, E joint width.
"""

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from prompted_clip.internals import unit_norm
from training.adapting.deep_prompts import deep_text_prompts
from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.initial_prompts import seeded_linear
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe
from training.scores import class_scores


class MaPLeRecipe(AdaptRecipe):
    """The repository's values for base-to-new; across data sets it trains at 0.0026 for 2 epochs, 3 layers deep."""

    learning_rate: float = Field(default=0.0035, gt=0)
    epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=4, ge=1)
    tokens: int = Field(default=2, ge=1, le=64, description="prompt tokens per layer, in each tower")
    depth: int = Field(default=9, ge=1, description="layers with coupled tokens, cut to the shallower tower's")
    text_init: str = Field(default="a photo of a", description="words for text layer 0; words beyond tokens stay words")


class MaPLe(nn.Module):
    """Text prompts T [L, P, text width] and L couplings Linear(text width -> vision width), layer 0 included.

    Args:
        base_model: the frozen CLIP, boosted or plain.
        class_names: K names.
        recipe: count, depth, initial words and seed.

    Raises:
        TextTooLongError: a class name does not fit together with the prompts.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"images"})
    averages_over_images: ClassVar[bool] = True

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: MaPLeRecipe) -> None:
        super().__init__()
        self.base_model = base_model
        backbone = base_model.backbone
        depth = min(recipe.depth, backbone.n_vision_layers, backbone.n_text_layers)
        generator = torch.Generator().manual_seed(recipe.seed)
        self.text_prompts, self.template = deep_text_prompts(
            backbone, depth, recipe.tokens, recipe.text_init, generator
        )
        first, deeper = (
            seeded_linear(backbone.text_width, backbone.vision_width, generator, backbone.device) for _ in range(2)
        )
        # As in the repository: the couplings below layer 0 start as copies of one.
        self.couplings = nn.ModuleList([first, *(copy.deepcopy(deeper) for _ in range(depth - 1))])
        self.tokens = base_model.tokenize(class_names, self.template, n_prompts=recipe.tokens)

    def image_prompts(self) -> Tensor:
        """V, with V_l = F_l(T_l): [L, P, vision width], float32 under autocast too, as every other prompt."""
        with torch.autocast(self.text_prompts.device.type, enabled=False):
            return torch.stack([couple(text) for couple, text in zip(self.couplings, self.text_prompts, strict=True)])

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Text prompts and couplings, at the recipe's rate."""
        return [ParameterGroup([self.text_prompts, *self.couplings.parameters()])]

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image [B, E] and text [K, E] embeddings under the prompts, before they are brought to length 1."""
        images_BCHW = required_input(batch.images_BCHW, "images")
        return (
            self.base_model.embed_images(images_BCHW, self.image_prompts()),
            self.base_model.embed_text(self.tokens, self.text_prompts),
        )

    def logits(self, batch: Batch) -> Tensor:
        """Z, s · <f, g>: [B, K]."""
        image_BE, text_KE = self.embed(batch)
        return class_scores(self.base_model.logit_scale, unit_norm(image_BE), unit_norm(text_KE))

    def loss(self, batch: Batch) -> Tensor:
        """CE(z, y)."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B)

    def end_epoch(self, epoch: int) -> None:
        """Nothing is averaged over epochs."""

    def fold(self) -> ExportedPrompts:
        """The couplings applied once; only their products leave."""
        return ExportedPrompts(image_adapt=detached(self.image_prompts()), text_adapt=detached(self.text_prompts))
