"""TCP: tokens made of a class's own text feature replace the context in one deeper layer of the text tower.

    T_c = linear2( quick_gelu( linear1( g0_c ) ) )   [N, W],   g0_c the frozen text feature of class c
    g_c = text tower on [SOS, context, name of c, ".", EOT], with T_c at the context's positions from layer l on
    L = CE(s · <f(x), g_c>, y) + w · (1 - mean_c <g_c, g0_c>)

Source: TCP (arXiv 2311.18231), section 3.2, and its repository for layer, sizes and w. Where the paper says CLIP, f and
g0 are the base model's. The repository trains with Adam (L2 penalty, epsilon 1e-3 for float16) instead of AdamW.

The text tower is causal, so the context's states in the layers before l are the same for all classes and follow from
the context alone: the prompts are a deep group [K, l + 1, N, W] with states of the context in the first l layers.
Inference needs text features only, but those of other classes need the meta-net, which a bundle does not contain: it
supports its own classes, to which `further_classes` adds classes without images.

Legend: B rows, K classes, L = l + 1 prompt layers, N context tokens, W text width, E joint width.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from open_clip.transformer import QuickGELU
from pydantic import Field
from torch import Tensor, nn

from prompt_store.class_names import comparison_key
from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.adapting.reference import TemplateRecipe, class_template
from training.adapting.text_context import CONTEXT_TEMPLATE, init_context, init_meta_net
from training.data.class_list import check_class_names
from training.errors import RecipeError
from training.initial_prompts import prefix_states
from training.loop import ParameterGroup
from training.prompted_backbone import ClassTokens, PromptedBackbone
from training.scores import class_scores


class TCPRecipe(TemplateRecipe):
    """TCP's settings; defaults from its repository for base-to-new, except that AdamW replaces Adam."""

    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="SGD with momentum 0.9, or AdamW")
    learning_rate: float = Field(default=0.002, gt=0)
    epochs: int = Field(default=50, ge=1, description="50; 25 for ImageNet and SUN397")
    batch_size: int = Field(default=32, ge=1)
    context_tokens: int = Field(default=4, ge=1, le=64, description="number of context tokens if context_init is empty")
    context_init: str = Field(
        default="a photo of a", description="initial words, which also set the context length; empty: random"
    )
    context_template: str = Field(default=CONTEXT_TEMPLATE, description="text behind the context, with one {}")
    layer: int = Field(
        default=8,
        ge=1,
        description="text layer, counted from 0, whose input gets the class-aware tokens; at most the last",
    )
    meta_reduction: int = Field(default=4, ge=1, description="joint width divided by the meta-net's hidden width")
    text_weight: float = Field(default=8.0, ge=0, description="w, weight of the distance between g and g0")
    further_classes: tuple[str, ...] = Field(
        default=(), description="classes without images that the bundle can classify, too"
    )


class TCP(nn.Module):
    """Class-aware prompts; the parameters are `context` [N, W] and `meta_net`.

    Args:
        base_model: the model to adapt.
        class_names: K names of classes with images.
        recipe: all settings.

    Raises:
        ClassListError: a further class has an invalid name.
        RecipeError: a further class is one of the classes, or occurs twice; or the text tower has one layer only.
        TextTooLongError: a class name with the prompts, or in the template, exceeds the text tower's context length.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"features"})
    averages_over_images: ClassVar[bool] = True

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: TCPRecipe) -> None:
        super().__init__()
        backbone, generator = base_model.backbone, torch.Generator().manual_seed(recipe.seed)
        context_NW = init_context(backbone, recipe.context_init, recipe.context_tokens, generator)[0]
        self.context = nn.Parameter(context_NW.to(backbone.device))
        self.meta_net = init_meta_net(backbone, recipe.meta_reduction, QuickGELU(), context_NW.numel(), generator)
        self.base_model, self.recipe, self.template = base_model, recipe, recipe.context_template
        self.layer = min(recipe.layer, backbone.n_text_layers - 1)
        if self.layer < 1:
            raise RecipeError(f"TCP needs a text tower of at least 2 layers; {backbone.arch} has one.")
        check_class_names(recipe.further_classes, "further_classes")
        _check_distinct([*class_names, *recipe.further_classes])
        self.classes = self._texts(class_names)
        self.further = self._texts(recipe.further_classes) if recipe.further_classes else None

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Context and meta-net, at the recipe's rate."""
        return [ParameterGroup(list(self.parameters()))]

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy plus the distance to the frozen text features."""
        text_KE = self._encode(*self.classes)
        _, frozen_KE = self.classes
        distance = 1 - (text_KE * frozen_KE).sum(dim=-1).mean()
        task = nn.functional.cross_entropy(self._scores(batch, text_KE), batch.labels_B)
        return task + self.recipe.text_weight * distance

    def logits(self, batch: Batch) -> Tensor:
        """Class scores z = s · <f(x), g_c>: [B, K]."""
        return self._scores(batch, self._encode(*self.classes))

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    @torch.no_grad()
    def fold(self) -> ExportedPrompts:
        """Text features of the classes and the further classes."""
        texts = [self.classes, *([self.further] if self.further is not None else [])]
        return ExportedPrompts(
            text_features_KE=torch.cat([detached(self._encode(*group)) for group in texts]),
            is_closed_vocabulary=True,
            further_classes=self.recipe.further_classes,
        )

    def _texts(self, names: Sequence[str]) -> tuple[ClassTokens, Tensor]:
        """Tokens behind the context, and g0 [K, E]."""
        tokens = self.base_model.tokenize(names, self.template, n_prompts=len(self.context))
        return tokens, self.base_model.zero_shot_text(names, [class_template(self.base_model, self.recipe)])

    def _encode(self, tokens: ClassTokens, frozen_KE: Tensor) -> Tensor:
        """Text features g: [K, E]."""
        class_KNW = self.meta_net(frozen_KE).reshape(len(frozen_KE), *self.context.shape)
        states_LNW = prefix_states(self.base_model.backbone, self.context, self.layer)
        group_KLNW = torch.cat(
            [states_LNW.expand(len(class_KNW), -1, -1, -1), class_KNW.to(states_LNW.dtype).unsqueeze(1)], dim=1
        )
        return self.base_model.encode_text(tokens, group_KLNW)

    def _scores(self, batch: Batch, text_KE: Tensor) -> Tensor:
        return class_scores(self.base_model.logit_scale, required_input(batch.features_BE, "features"), text_KE)


def _check_distinct(names: Sequence[str]) -> None:
    keys = [comparison_key(name) for name in names]
    if twice := [name for name, key in zip(names, keys, strict=True) if keys.count(key) > 1]:
        msg = f"further_classes must be other classes than those with images, each once; {twice[-1]!r} occurs twice."
        raise RecipeError(msg)
