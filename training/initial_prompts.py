"""Initial values: random prompts, word embeddings, seeded linear layers.

Legend: L prompt layers, P prompt tokens, W tower width.
"""

import math

import torch
from torch import Tensor, nn

from prompted_clip.backbone import Backbone
from prompted_clip.internals import add_positions, causal_mask, embed_tokens, text_blocks
from training.errors import RecipeError


def random_prompts(depth: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
    """N(0, 0.02²) [L, P, W] float32, as in IVLP."""
    return torch.randn(depth, tokens, width, generator=generator) * 0.02


def init_from_words(prompts_LPW: Tensor, backbone: Backbone, words: str) -> None:
    """Set the first tokens of layer 0 to the token embeddings of `words`, in place; the others keep their values.

    Args:
        prompts_LPW: text prompts on the CPU.
        backbone: provides tokenizer and token embeddings.
        words: such as "a photo of a"; may be empty.

    Raises:
        RecipeError: the words have more than P tokens.
    """
    check_words(backbone, words, prompts_LPW.shape[1])
    ids = torch.tensor(backbone.tokenizer.encode(words), dtype=torch.long, device=backbone.device)
    prompts_LPW[0, : len(ids)] = embed_tokens(backbone.clip, ids).detach().float().cpu()


def check_words(backbone: Backbone, words: str, n_tokens: int) -> None:
    """Check that initial words fit.

    Raises:
        RecipeError: `words` have more than `n_tokens` tokens.
    """
    needed = len(backbone.tokenizer.encode(words))
    if needed > n_tokens:
        msg = (
            f"The initial words {words!r} take {needed} tokens, but there are {n_tokens} text tokens. Use more tokens, "
            "fewer words, or an empty text for random prompts."
        )
        raise RecipeError(msg)


@torch.no_grad()
def word_states(backbone: Backbone, words: str, depth: int) -> Tensor:
    """Deep text prompts [L, P, W] with which the text tower computes the same as with `words` before the class name.

    float32, on the CPU; see `prefix_states`.

    Args:
        backbone: provides tokenizer and text tower.
        words: such as "a photo of a"; P is their number of tokens, which may be 0.
        depth: L, at most the tower's number of layers.
    """
    ids = torch.tensor(backbone.tokenizer.encode(words), dtype=torch.long, device=backbone.device)
    return prefix_states(backbone, embed_tokens(backbone.clip, ids), depth).float().cpu()


def prefix_states(backbone: Backbone, prefix_PW: Tensor, depth: int) -> Tensor:
    """Deep text prompts [L, P, W] with which the text tower computes the same as with one layer of prompts.

    Layer 0 is the prompts; layer i is the output of block i-1 at their positions, directly behind the start token. The
    tower is causal, so these outputs do not depend on the text behind them. Differentiable.

    Args:
        backbone: provides the text tower.
        prefix_PW: P prompts of depth 1, on the backbone's device.
        depth: L, at most the tower's number of layers.
    """
    clip = backbone.clip
    start = torch.full((1,), backbone.tokenizer.sot_token_id, device=backbone.device)  # not copied from the host
    start_1W = embed_tokens(clip, start)
    embedded = torch.cat([start_1W, prefix_PW.to(start_1W.dtype)]).unsqueeze(0)
    layers, x = [embedded], add_positions(clip, embedded)
    for block in list(text_blocks(clip))[: depth - 1]:
        x = block(x, attn_mask=causal_mask(clip, x.shape[1]))
        layers.append(x)
    return torch.cat(layers)[:, 1:]


def seeded_linear(n_in: int, n_out: int, generator: torch.Generator, device: torch.device) -> nn.Linear:
    """A float32 linear layer with torch's default initialisation, U(-1/√n_in, 1/√n_in), drawn from `generator`."""
    linear = nn.Linear(n_in, n_out, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(n_in)
    nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
    nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
    return linear.to(device)
