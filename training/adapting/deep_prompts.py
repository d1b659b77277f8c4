"""Deep prompts as the methods with image prompts start, read and hand them over.

It knows how prompts begin and how a method's tensors leave it; it knows no loss.

Legend: B rows, C/H/W image, L prompt layers, P prompt tokens, W tower width.
"""

import torch
from pydantic import Field
from torch import nn

from prompted_clip.backbone import Backbone
from training.initial_prompts import init_from_words, random_prompts
from training.recipe import AdaptRecipe


class DeepPromptRecipe(AdaptRecipe):
    """Independent deep prompts in both towers, with the values of PromptSRC's repository."""

    learning_rate: float = Field(default=0.0025, gt=0)
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=4, ge=1)
    image_tokens: int = Field(default=4, ge=1, le=64, description="prompt tokens per layer in the image tower")
    image_depth: int = Field(default=9, ge=1, description="layers with own image tokens, cut to the tower's")
    text_tokens: int = Field(default=4, ge=1, le=64, description="prompt tokens per layer in the text tower")
    text_depth: int = Field(default=9, ge=1, description="layers with own text tokens, cut to the tower's")
    text_init: str = Field(
        default="a photo of a", description="words for text layer 0; words beyond text_tokens stay words"
    )


def deep_image_prompts(backbone: Backbone, depth: int, tokens: int, generator: torch.Generator) -> nn.Parameter:
    """N(0, 0.02²) [L, P, vision width] float32 on the backbone's device; L is `depth`, cut to the image tower."""
    prompts = random_prompts(min(depth, backbone.n_vision_layers), tokens, backbone.vision_width, generator)
    return nn.Parameter(prompts.to(backbone.device))


def deep_text_prompts(
    backbone: Backbone, depth: int, tokens: int, words: str, generator: torch.Generator
) -> tuple[nn.Parameter, str]:
    """Text prompts whose layer 0 starts from words, and the text that stands behind them.

    The prompts take the first words; words left over stay ordinary words of the text. With "a photo of a", four tokens
    take all of it, and two take "a photo" and leave "of a {}." (as in MaPLe's repository). Where there are fewer words
    than tokens, or a word is several tokens, all layers start random and the text is "{}.".

    Args:
        backbone: owner of text tower and tokenizer.
        depth: layers with own tokens, cut to the text tower.
        tokens: P.
        words: the initial words; empty for none.
        generator: source of the random layers.

    Returns:
        Prompts [L, P, text width] float32 on the backbone's device, and the text with one `{}`.
    """
    prompts = random_prompts(min(depth, backbone.n_text_layers), tokens, backbone.text_width, generator)
    split = words.split()
    fitted = init_from_words(prompts, backbone, " ".join(split[:tokens]))
    kept = split[tokens:] if fitted else []
    return nn.Parameter(prompts.to(backbone.device)), " ".join([*kept, "{}."])
