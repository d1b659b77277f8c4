"""ATPrompt: fixed attribute words in front of a text prompt, each behind learnable tokens of its own.

    [SOS, A_1, attribute 1, …, A_M, attribute M, T, name of the class, ".", EOT]

A_m are the learnable tokens of attribute m, T the text prompt of the method. Deep prompts replace T in every layer;
the A_m and the words enter at layer 0 and flow through all layers. Source: ATPrompt (arXiv 2412.09442), section 3.2,
and its repository for the initialisation. The paper's search for attributes is not part of this module.

The text tower is causal, so the states of A_m and the words in every layer follow from these tokens alone. The method
exports them as deep prompts, which fold into one group together with T.

Legend: M attributes, N learnable tokens per attribute, A all tokens in front of T, L prompt layers, P tokens of T,
W text width.
"""

from typing import Annotated, Final

import torch
from pydantic import Field, StringConstraints
from torch import Tensor, nn

from prompt_store.manifest import MAX_TOKENS
from prompted_clip.backbone import Backbone
from prompted_clip.internals import embed_tokens
from training.errors import RecipeError
from training.initial_prompts import prefix_states
from training.recipe import AdaptRecipe

INITIAL_DEVIATION: Final = 0.01
"""Standard deviation of the initial A_m in ATPrompt's repository."""

Attribute = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class AttributeRecipe(AdaptRecipe):
    """Settings of methods whose text prompt can have attributes in front of it."""

    attributes: tuple[Attribute, ...] = Field(
        default=(),
        description='fixed attribute words in front of the text prompt, such as ["color", "shape"] (ATPrompt); '
        "empty: none",
    )
    attribute_tokens: int = Field(
        default=2,
        ge=1,
        le=64,
        description="learnable tokens in front of each attribute; ATPrompt uses as many as for the class name",
    )


class AttributePrefix(nn.Module):
    """The tokens in front of a text prompt: A_m as the parameter `soft` [M, N, W], and the attribute words.

    Without attributes it has no parameters and changes nothing.

    Args:
        backbone: provides tokenizer, token embeddings and text tower.
        recipe: the attributes and N.
        generator: draws the initial A_m.
    """

    soft: nn.Parameter | None

    def __init__(self, backbone: Backbone, recipe: AttributeRecipe, generator: torch.Generator) -> None:
        super().__init__()
        self._backbone = backbone
        self._ids = [torch.tensor(backbone.tokenizer.encode(word)) for word in recipe.attributes]
        soft_MNW = None
        if recipe.attributes:
            shape = (len(recipe.attributes), recipe.attribute_tokens, backbone.text_width)
            soft_MNW = nn.Parameter((torch.randn(*shape, generator=generator) * INITIAL_DEVIATION).to(backbone.device))
        self.register_parameter("soft", soft_MNW)

    def n_tokens(self, n_prompts: int) -> int:
        """A + P for P tokens of T.

        Raises:
            RecipeError: they are more than a bundle's group can have.
        """
        n_total = n_prompts
        if self.soft is not None:
            n_total += self.soft.shape[0] * self.soft.shape[1] + sum(map(len, self._ids))
        if n_total > MAX_TOKENS:
            msg = (
                f"The attributes and the text prompt take {n_total} tokens, but a bundle has at most {MAX_TOKENS}. Use "
                "fewer attributes, or lower attribute_tokens."
            )
            raise RecipeError(msg)
        return n_total

    def before(self, prompts_LPW: Tensor) -> Tensor:
        """A text prompt with the attributes in front of it: [L, A + P, W]; differentiable."""
        if self.soft is None:
            return prompts_LPW
        clip, device = self._backbone.clip, self._backbone.device
        words = [embed_tokens(clip, ids.to(device)).to(self.soft.dtype) for ids in self._ids]
        prefix_AW = torch.cat([part for pair in zip(self.soft, words, strict=True) for part in pair])
        states_LAW = prefix_states(self._backbone, prefix_AW, len(prompts_LPW))
        return torch.cat([states_LAW.to(prompts_LPW.dtype), prompts_LPW], dim=1)
