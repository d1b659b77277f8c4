"""Initial values: random prompts, word embeddings, seeded linear layers.

Legend: L prompt layers, P prompt tokens, W tower width.
"""

import math

import torch
from torch import Tensor, nn

from prompted_clip.backbone import Backbone
from prompted_clip.internals import embed_tokens


def random_prompts(depth: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
    """N(0, 0.02²) [L, P, W] float32, as in IVLP."""
    return torch.randn(depth, tokens, width, generator=generator) * 0.02


def init_from_words(prompts_LPW: Tensor, backbone: Backbone, words: str) -> bool:
    """Set layer 0 to the token embeddings of `words`, in place, if they have exactly P tokens.

    Args:
        prompts_LPW: text prompts on the CPU.
        backbone: provides tokenizer and token embeddings.
        words: such as "a photo of a".

    Returns:
        Whether the words had P tokens.
    """
    ids = torch.tensor(backbone.tokenizer.encode(words), dtype=torch.long, device=backbone.device)
    if prompts_LPW.shape[1] == 0 or len(ids) != prompts_LPW.shape[1]:
        return False
    prompts_LPW[0] = embed_tokens(backbone.clip, ids).detach().float().cpu()
    return True


def seeded_linear(n_in: int, n_out: int, generator: torch.Generator, device: torch.device) -> nn.Linear:
    """A float32 linear layer with torch's default initialisation, U(-1/√n_in, 1/√n_in), drawn from `generator`."""
    linear = nn.Linear(n_in, n_out, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(n_in)
    nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
    nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
    return linear.to(device)
