"""UPT: a small Transformer turns one set of unified prompts into the prompts of both towers.

Source: Unified Prompt Tuning (arXiv 2210.07225). For each layer's unified prompt U, with a Transformer θ and
projections ψ shared by all layers:

    U' = SA(U) + LN(U),   Û = FFN(LN(U')) + LN(U')
    T = ψ_text(Û[:P]),   V = ψ_image(Û[P:]),   L = CE(z, y),   z_c = s · <f(x; V), g_c(T)>

Legend: B rows, K classes, L prompt layers, P prompt tokens per tower, D width of U, E joint width.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.initial_prompts import random_prompts, seeded_linear
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe
from training.scores import class_scores


class UPTRecipe(AdaptRecipe):
    """Trained like IVLP. The paper gives the equations; all sizes are inferred.

    Also inferred: layers share θ and ψ but not U; U is split along the tokens; no dropout; ψ is initialised so that the
    prompts' standard deviation is 0.02, as in IVLP.
    """

    learning_rate: float = Field(default=0.0025, gt=0)
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=4, ge=1)
    tokens: int = Field(default=4, ge=1, le=64, description="prompt tokens per layer and tower; inferred (IVLP's)")
    depth: int = Field(
        default=9, ge=1, description="layers with their own tokens, at most each tower's; inferred (IVLP's)"
    )
    heads: int = Field(default=1, ge=1, description="attention heads of the Transformer; inferred")
    head_width: int = Field(
        default=512, ge=1, description="width of a head; heads times this is the width of U; inferred"
    )
    ffn_width: int = Field(default=512, ge=1, description="hidden width of the Transformer's FFN; inferred")


class UPT(nn.Module):
    """Unified prompts U [L, 2P, D], the Transformer θ and the projections ψ.

    Args:
        base_model: the frozen CLIP, boosted or plain.
        class_names: K names.
        recipe: counts, depth, sizes and seed.

    Raises:
        TextTooLongError: a class name and the prompts exceed the text tower's context length.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"images"})
    averages_over_images: ClassVar[bool] = True
    template: str = "{}."

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: UPTRecipe) -> None:
        super().__init__()
        self.base_model = base_model
        self.recipe = recipe
        backbone, device = base_model.backbone, base_model.backbone.device
        generator = torch.Generator().manual_seed(recipe.seed)
        width = recipe.heads * recipe.head_width
        self.image_depth = min(recipe.depth, backbone.n_vision_layers)
        self.text_depth = min(recipe.depth, backbone.n_text_layers)
        depth = max(self.image_depth, self.text_depth)
        self.unified = nn.Parameter(random_prompts(depth, 2 * recipe.tokens, width, generator).to(device))
        self.norm_attention = nn.LayerNorm(width, device=device)
        self.queries_keys_values = seeded_linear(width, 3 * width, generator, device)
        self.attention_out = seeded_linear(width, width, generator, device)
        self.norm_ffn = nn.LayerNorm(width, device=device)
        self.ffn_in = seeded_linear(width, recipe.ffn_width, generator, device)
        self.ffn_out = seeded_linear(recipe.ffn_width, width, generator, device)
        self.to_text = _small_linear(width, backbone.text_width, generator, device)
        self.to_image = _small_linear(width, backbone.vision_width, generator, device)
        self.tokens = base_model.tokenize(class_names, self.template, n_prompts=recipe.tokens)

    def prompts(self) -> tuple[Tensor, Tensor]:
        """V [L, P, vision width] and T [L, P, text width], float32 even under autocast."""
        with torch.autocast(self.unified.device.type, enabled=False):
            attended = self.norm_ffn(self._attention(self.unified) + self.norm_attention(self.unified))
            transformed = self.ffn_out(self.ffn_in(attended).relu()) + attended
            of_text, of_image = transformed.split(self.recipe.tokens, dim=1)
            return self.to_image(of_image[: self.image_depth]), self.to_text(of_text[: self.text_depth])

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """U, θ and ψ, at the recipe's rate."""
        return [ParameterGroup(list(self.parameters()))]

    def logits(self, batch: Batch) -> Tensor:
        """Class scores z = s · <f, g>: [B, K]."""
        image_prompts, text_prompts = self.prompts()
        f = self.base_model.encode_images(required_input(batch.images_BCHW, "images"), image_prompts)
        g = self.base_model.encode_text(self.tokens, text_prompts)
        return class_scores(self.base_model.logit_scale, f, g)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the batch, float32."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B)

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    def fold(self) -> ExportedPrompts:
        """Both prompt groups, with the Transformer applied."""
        image_prompts, text_prompts = self.prompts()
        return ExportedPrompts(image_adapt=detached(image_prompts), text_adapt=detached(text_prompts))

    def _attention(self, u_LPD: Tensor) -> Tensor:
        """SA: self-attention among the tokens of a layer, of both towers."""
        heads = self.queries_keys_values(u_LPD).unflatten(-1, (3, self.recipe.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        attended: Tensor = self.attention_out(mixed.transpose(1, 2).flatten(-2))
        return attended


def _small_linear(n_in: int, n_out: int, generator: torch.Generator, device: torch.device) -> nn.Linear:
    """A linear layer that maps inputs of standard deviation 1 to outputs of standard deviation 0.02."""
    linear = seeded_linear(n_in, n_out, generator, device)
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        linear.weight.mul_(0.02 * 3**0.5)  # U(-1/√n, 1/√n) has variance 1/(3n)
    return linear
