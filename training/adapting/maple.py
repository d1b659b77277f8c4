"""MaPLe: each layer's image prompts are a linear function of its text prompts.

Source: MaPLe (arXiv 2210.03117), section 3.2. At each layer l, a linear map F_l couples the towers:

    V_l = F_l(T_l),   L = CE(z, y),   z_c = s · <f(x; V), g_c(T)>

Legend: B rows, K classes, L prompt layers, P prompt tokens, E joint width.
"""

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from prompted_clip.internals import unit_norm
from training.adapting.attributes import AttributePrefix, AttributeRecipe
from training.adapting.deep_prompts import deep_text_prompts
from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.adapting.unfrozen import LearnableBoostingRecipe, unfreeze, with_trained_boosting
from training.initial_prompts import seeded_linear
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.scores import class_scores


class MaPLeRecipe(LearnableBoostingRecipe, AttributeRecipe):
    """The repository's values for base-to-new; its cross-dataset values are rate 0.0026, 2 epochs, depth 3."""

    learning_rate: float = Field(default=0.0035, gt=0)
    epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=4, ge=1)
    tokens: int = Field(default=2, ge=1, le=64, description="prompt tokens per layer, in each tower")
    depth: int = Field(default=9, ge=1, description="layers with coupled tokens, at most those of the shallower tower")
    text_init: str = Field(
        default="a photo of a", description="initial words of text layer 0; words beyond `tokens` stay in the text"
    )


class MaPLe(nn.Module):
    """Text prompts T [L, P, text width] and L couplings Linear(text width -> vision width), layer 0 included.

    Args:
        base_model: the frozen CLIP, boosted or plain.
        class_names: K names.
        recipe: count, depth, initial words and seed.

    Raises:
        TextTooLongError: a class name and the prompts exceed the text tower's context length.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"images"})
    averages_over_images: ClassVar[bool] = True

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: MaPLeRecipe) -> None:
        super().__init__()
        self.base_model, self.boosting = unfreeze(base_model, recipe)
        backbone = base_model.backbone
        depth = min(recipe.depth, backbone.n_vision_layers, backbone.n_text_layers)
        generator = torch.Generator().manual_seed(recipe.seed)
        self.text_prompts, self.template = deep_text_prompts(
            backbone, depth, recipe.tokens, recipe.text_init, generator
        )
        first, deeper = (
            seeded_linear(backbone.text_width, backbone.vision_width, generator, backbone.device) for _ in range(2)
        )
        # As in the repository, the couplings of layers 1 and up start as copies of one.
        self.couplings = nn.ModuleList([first, *(copy.deepcopy(deeper) for _ in range(depth - 1))])
        self.attributes = AttributePrefix(backbone, recipe, generator)
        n_prompts = self.attributes.n_tokens(recipe.tokens)
        self.tokens = base_model.tokenize(class_names, self.template, n_prompts=n_prompts)

    def image_prompts(self) -> Tensor:
        """V with V_l = F_l(T_l): [L, P, vision width], float32 even under autocast."""
        with torch.autocast(self.text_prompts.device.type, enabled=False):
            return torch.stack([couple(text) for couple, text in zip(self.couplings, self.text_prompts, strict=True)])

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """All parameters, at the recipe's rate."""
        return [ParameterGroup(list(self.parameters()))]

    def prompt(self) -> Tensor:
        """The text prompts with the attributes in front of them; the couplings use the text prompts alone."""
        return self.attributes.before(self.text_prompts)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unnormalised image embeddings [B, E] and text embeddings [K, E]."""
        images_BCHW = required_input(batch.images_BCHW, "images")
        return (
            self.base_model.embed_images(images_BCHW, self.image_prompts()),
            self.base_model.embed_text(self.tokens, self.prompt()),
        )

    def logits(self, batch: Batch) -> Tensor:
        """Class scores z = s · <f, g>: [B, K]."""
        image_BE, text_KE = self.embed(batch)
        return class_scores(self.base_model.logit_scale, unit_norm(image_BE), unit_norm(text_KE))

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the batch, float32."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B)

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    def fold(self) -> ExportedPrompts:
        """Both prompt groups, with the couplings applied."""
        own = ExportedPrompts(image_adapt=detached(self.image_prompts()), text_adapt=detached(self.prompt()))
        return with_trained_boosting(own, self.base_model, self.boosting)
