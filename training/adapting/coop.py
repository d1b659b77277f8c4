"""CoOp: the words around a class name become learnable vectors.

    t_c = [context_1 … context_N, name of c, "."],   p(c | x) = softmax_c( s · <f(x), g(t_c)> ),   L = -log p(y | x)

The context is shared by all classes or each class has its own. Source: CoOp (arXiv 2109.01134), sections 3.2 and 4.1,
and its repository. Where the paper says CLIP, f and g are the base model's.

Legend: B rows, K classes, N context tokens, W text width, E joint width.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.adapting.text_context import CONTEXT_TEMPLATE, Position, init_context, place_context
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe
from training.scores import class_scores


class CoOpRecipe(AdaptRecipe):
    """CoOp's choices; defaults are those of its repository for ViT-B/16 and 16 shots."""

    learning_rate: float = Field(default=0.002, gt=0)
    epochs: int = Field(
        default=200, ge=1, description="200 for 8 and 16 shots, 100 for 2 and 4, 50 for 1 shot and for ImageNet"
    )
    batch_size: int = Field(default=32, ge=1)
    context_tokens: int = Field(default=16, ge=1, le=64, description="learnable tokens of a context that starts random")
    context_init: str = Field(
        default="", description='words the context starts from and is as long as, such as "a photo of a"; empty: random'
    )
    class_specific: bool = Field(
        default=False, description="a context for each class; such prompts serve no other labels"
    )
    position: Position = Field(
        default="end",
        description="of the class name: end, middle or front of the context; "
        "boosting prompts stay right in front of the name, inferred for middle and front",
    )


class CoOp(nn.Module):
    """Context optimisation; the only parameter is `context`, [N, W] or [K, N, W].

    It does not depend on the class names unless it is class-specific: a unified context loads into a CoOp that was
    built for other classes.

    Args:
        base_model: what is adapted.
        class_names: K names.
        recipe: every choice.

    Raises:
        TextTooLongError: a class name does not fit the text tower together with the prompts.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"features"})
    averages_over_images: ClassVar[bool] = True

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: CoOpRecipe) -> None:
        super().__init__()
        backbone, generator = base_model.backbone, torch.Generator().manual_seed(recipe.seed)
        # Differs from CoOp's repository: there, words make the context a shared one even where class-specific contexts
        # were asked for. Here each class gets its own copy of them.
        contexts = init_context(
            backbone,
            recipe.context_init,
            recipe.context_tokens,
            generator,
            n_sets=len(class_names) if recipe.class_specific else 1,
        )
        self.context = nn.Parameter((contexts if recipe.class_specific else contexts[0]).to(backbone.device))
        self.base_model, self.recipe, self.template = base_model, recipe, CONTEXT_TEMPLATE
        self.texts = place_context(base_model, class_names, self.context.shape[-2], recipe.position)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The context, at the recipe's rate."""
        return [ParameterGroup([self.context])]

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the batch, float32."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B)

    def logits(self, batch: Batch) -> Tensor:
        """Scores z = s · <f(x), g_c>, [B, K]."""
        features_BE = required_input(batch.features_BE, "features")
        return class_scores(self.base_model.logit_scale, features_BE, self.texts.encode(self.context))

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings of images [B, E] and classes [K, E] before they are brought to length 1, for DePT."""
        with torch.no_grad():
            image_BE = self.base_model.embed_images(required_input(batch.images_BCHW, "images"))
        return image_BE, self.texts.embed(self.context)

    def end_epoch(self, epoch: int) -> None:
        """Nothing is kept over epochs."""

    @torch.no_grad()
    def fold(self) -> ExportedPrompts:
        """The context with the class name at its end; text features where the name stands elsewhere.

        A text group stands in one piece right behind SOS. With the name in the middle or in front, the context does
        not, so it cannot leave as a group; its text features can, and they serve the trained classes alone.
        """
        if self.recipe.position != "end":
            features_KE = detached(self.texts.encode(self.context))
            return ExportedPrompts(text_features_KE=features_KE, is_closed_vocabulary=True)
        context = detached(self.context).unsqueeze(-3)
        return ExportedPrompts(text_adapt=context, is_closed_vocabulary=self.recipe.class_specific)
