"""CoCoOp: a learnable context, shifted per image by a small meta-net on the image features.

    π = linear2( relu( linear1( f(x) ) ) ),   context_n(x) = context_n + π  for every token n
    p(c | x) = softmax_c( s · <f(x), g([context(x), name of c, "."])> ),   L = -log p(y | x)

Source: CoCoOp (arXiv 2203.05557), section 3.2, and its repository. Where the paper says CLIP, f and g are the base
model's. The text tower runs for every image and class, so a step encodes B·K texts.

Legend: B rows, K classes, R texts of one pass, N context tokens, W text width, E joint width, H hidden width.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.adapting.text_context import CONTEXT_TEMPLATE, init_context, init_meta_net, place_context
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe
from training.scores import class_scores


class CoCoOpRecipe(AdaptRecipe):
    """CoCoOp's settings; defaults from its repository."""

    learning_rate: float = Field(default=0.002, gt=0)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=1, ge=1)
    context_tokens: int = Field(default=4, ge=1, le=64, description="number of context tokens if context_init is empty")
    context_init: str = Field(
        default="a photo of a", description="initial words, which also set the context length; empty: random"
    )
    meta_reduction: int = Field(default=16, ge=1, description="joint width divided by the meta-net's hidden width")
    texts_per_pass: int = Field(
        default=1024, ge=1, description="texts per pass of the text tower; bounds memory, does not change results"
    )


class CoCoOp(nn.Module):
    """Conditional context optimisation; the parameters are `context` [N, W] and `meta_net`.

    Args:
        base_model: the model to adapt.
        class_names: K names.
        recipe: all settings.

    Raises:
        TextTooLongError: a class name and the prompts exceed the text tower's context length.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"features"})
    averages_over_images: ClassVar[bool] = True

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: CoCoOpRecipe) -> None:
        super().__init__()
        backbone, generator = base_model.backbone, torch.Generator().manual_seed(recipe.seed)
        context_NW = init_context(backbone, recipe.context_init, recipe.context_tokens, generator)[0]
        self.context = nn.Parameter(context_NW.to(backbone.device))
        self.meta_net = init_meta_net(backbone, recipe.meta_reduction, nn.ReLU(), backbone.text_width, generator)
        self.base_model, self.recipe, self.template = base_model, recipe, CONTEXT_TEMPLATE
        self.n_classes = len(class_names)
        self.texts = place_context(base_model, class_names, len(context_NW))

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Context and meta-net, at the recipe's rate."""
        return [ParameterGroup(list(self.parameters()))]

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the batch, float32."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B)

    def logits(self, batch: Batch) -> Tensor:
        """Class scores z_bc = s · <f(x_b), g_c(x_b)>: [B, K], with text features per image."""
        features_BE = required_input(batch.features_BE, "features")
        return class_scores(self.base_model.logit_scale, features_BE, self._text_features(features_BE))

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    def fold(self) -> ExportedPrompts:
        """Context and meta-net, unchanged, because the text features depend on the image."""
        meta_net = {name: detached(tensor) for name, tensor in self.meta_net.state_dict().items()}
        return ExportedPrompts(text_adapt=detached(self.context).unsqueeze(0), meta_net=meta_net)

    def _text_features(self, features_BE: Tensor) -> Tensor:
        """g_c(x_b) [B, K, E], computed in passes of at most `texts_per_pass` texts.

        With several passes, each is activation-checkpointed, so peak memory is that of one pass.
        """
        contexts_BNW = self.context + self.meta_net(features_BE).unsqueeze(1)
        n_rows = len(features_BE) * self.n_classes
        rows = torch.arange(n_rows, device=features_BE.device)
        passes = rows.chunk(math.ceil(n_rows / self.recipe.texts_per_pass))
        encode = self._encode_rows if len(passes) == 1 else self._encode_rows_checkpointed
        texts = torch.cat([encode(contexts_BNW, rows_R) for rows_R in passes])
        return texts.reshape(len(features_BE), self.n_classes, -1)

    def _encode_rows(self, contexts_BNW: Tensor, rows_R: Tensor) -> Tensor:
        """Features [R, E] of the texts with indices b·K + c."""
        return self.texts.encode(contexts_BNW[rows_R // self.n_classes], rows_R % self.n_classes)

    def _encode_rows_checkpointed(self, contexts_BNW: Tensor, rows_R: Tensor) -> Tensor:
        """`_encode_rows` with activation checkpointing; it uses no randomness, so no RNG state is saved."""
        return checkpoint(self._encode_rows, contexts_BNW, rows_R, use_reentrant=False, preserve_rng_state=False)
