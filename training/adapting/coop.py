"""CoOp: learnable context vectors instead of the words around a class name.

    t_c = [context_1 … context_N, name of c, "."],   p(c | x) = softmax_c( s · <f(x), g(t_c)> ),   L = -log p(y | x)

The context is shared by all classes, or class-specific. Source: CoOp (arXiv 2109.01134), sections 3.2 and 4.1, and its
repository. Where the paper says CLIP, f and g are the base model's.

Legend: B rows, K classes, N context tokens, W text width, E joint width.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.adapting.attributes import AttributePrefix, AttributeRecipe
from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.adapting.text_context import CONTEXT_TEMPLATE, Position, init_context, place_context
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.scores import class_scores


class CoOpRecipe(AttributeRecipe):
    """CoOp's settings; defaults from its repository for ViT-B/16 and 16 shots."""

    learning_rate: float = Field(default=0.002, gt=0)
    epochs: int = Field(
        default=200, ge=1, description="200 for 8 and 16 shots, 100 for 2 and 4, 50 for 1 shot and for ImageNet"
    )
    batch_size: int = Field(default=32, ge=1)
    context_tokens: int = Field(
        default=16, ge=1, le=64, description="number of context tokens if context_init is empty"
    )
    context_init: str = Field(
        default="",
        description='initial words, such as "a photo of a", which also set the context length; empty: random',
    )
    class_specific: bool = Field(
        default=False, description="one context per class; such prompts do not support other labels"
    )
    position: Position = Field(
        default="end",
        description="place of the class name: at the end, in the middle or in front of the context; boosting prompts "
        "directly precede the name (inferred for middle and front)",
    )

    @model_validator(mode="after")
    def _check_attributes(self) -> Self:
        if self.attributes and (self.class_specific or self.position != "end"):
            raise ValueError('attributes need a context shared by all classes in front of the name: position = "end" '
                             "and class_specific = false")  # fmt: skip
        return self


class CoOp(nn.Module):
    """Context optimisation; the parameters are `context`, [N, W] or [K, N, W], and those of the attributes, if any.

    A shared context can be loaded into a CoOp for other classes.

    Args:
        base_model: the model to adapt.
        class_names: K names.
        recipe: all settings.

    Raises:
        TextTooLongError: a class name and the prompts exceed the text tower's context length.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"features"})
    averages_over_images: ClassVar[bool] = True

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: CoOpRecipe) -> None:
        super().__init__()
        backbone, generator = base_model.backbone, torch.Generator().manual_seed(recipe.seed)
        # Differs from CoOp's repository: there, initial words make the context shared even if it should be
        # class-specific. Here each class gets its own copy of the words.
        contexts = init_context(
            backbone,
            recipe.context_init,
            recipe.context_tokens,
            generator,
            n_sets=len(class_names) if recipe.class_specific else 1,
        )
        self.context = nn.Parameter((contexts if recipe.class_specific else contexts[0]).to(backbone.device))
        self.base_model, self.recipe, self.template = base_model, recipe, CONTEXT_TEMPLATE
        self.attributes = AttributePrefix(backbone, recipe, generator)
        n_tokens = self.attributes.n_tokens(self.context.shape[-2])
        self.texts = place_context(base_model, class_names, n_tokens, recipe.position)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """All parameters, at the recipe's rate."""
        return [ParameterGroup(list(self.parameters()))]

    def prompt(self) -> Tensor:
        """The context with the attributes in front of it: [N', W] or [K, N, W]."""
        return self.context if self.context.ndim == 3 else self.attributes.before(self.context.unsqueeze(0))[0]

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the batch, float32."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B)

    def logits(self, batch: Batch) -> Tensor:
        """Class scores z = s · <f(x), g_c>: [B, K]."""
        features_BE = required_input(batch.features_BE, "features")
        return class_scores(self.base_model.logit_scale, features_BE, self.texts.encode(self.prompt()))

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unnormalised image embeddings [B, E] and text embeddings [K, E], for DePT."""
        with torch.no_grad():
            image_BE = self.base_model.embed_images(required_input(batch.images_BCHW, "images"))
        return image_BE, self.texts.embed(self.prompt())

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    @torch.no_grad()
    def fold(self) -> ExportedPrompts:
        """The context if the class name is at its end, else text features.

        A bundle's text group directly follows SOS. With the class name in the middle or in front, the context does not,
        so only the text features of the training classes can be exported.
        """
        if self.recipe.position != "end":
            features_KE = detached(self.texts.encode(self.prompt()))
            return ExportedPrompts(text_features_KE=features_KE, is_closed_vocabulary=True)
        context = detached(self.prompt()).unsqueeze(-3)
        return ExportedPrompts(text_adapt=context, is_closed_vocabulary=self.recipe.class_specific)
