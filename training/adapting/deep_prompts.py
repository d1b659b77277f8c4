"""Initialisation of deep prompts, and the settings of methods with independent prompts.

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
    image_depth: int = Field(default=9, ge=1, description="layers with their own image tokens, at most the tower's")
    text_tokens: int = Field(default=4, ge=1, le=64, description="prompt tokens per layer in the text tower")
    text_depth: int = Field(default=9, ge=1, description="layers with their own text tokens, at most the tower's")
    text_init: str = Field(
        default="a photo of a", description="initial words of text layer 0; words beyond text_tokens stay in the text"
    )


def deep_image_prompts(backbone: Backbone, depth: int, tokens: int, generator: torch.Generator) -> nn.Parameter:
    """N(0, 0.02²) [L, P, vision width] float32 on the backbone's device; L is at most the tower's depth."""
    prompts = random_prompts(min(depth, backbone.n_vision_layers), tokens, backbone.vision_width, generator)
    return nn.Parameter(prompts.to(backbone.device))


def deep_text_prompts(
    backbone: Backbone, depth: int, tokens: int, words: str, generator: torch.Generator
) -> tuple[nn.Parameter, str]:
    """Text prompts initialised from words in layer 0, and the template after them.

    The first `tokens` words initialise the prompts; the remaining words stay in the template. With "a photo of a", four
    tokens leave "{}.", and two leave "of a {}." (as in MaPLe's repository). With fewer words than tokens, the other
    tokens are random and the template is "{}.".

    Args:
        backbone: provides text tower and tokenizer.
        depth: layers with their own tokens, at most the tower's.
        tokens: P.
        words: initial words; empty for random prompts.
        generator: for the random layers.

    Returns:
        Prompts [L, P, text width] float32 on the backbone's device, and the template with one `{}`.

    Raises:
        RecipeError: the first words have more than `tokens` tokens.
    """
    prompts = random_prompts(min(depth, backbone.n_text_layers), tokens, backbone.text_width, generator)
    split = words.split()
    init_from_words(prompts, backbone, " ".join(split[:tokens]))
    return nn.Parameter(prompts.to(backbone.device)), " ".join([*split[tokens:], "{}."])
