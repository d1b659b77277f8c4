"""A learnable context in the text tower: where it starts, where it stands, and text features with it.

Knows CoOp's three places for the class name (arXiv 2109.01134, section 3.2) and where boosting prompts stand among
them. Does not know images, losses, or how a method comes by its context.

A context has depth 1: it enters with the token embeddings and flows through all layers, while boosting prompts are
deep (CasPL, arXiv 2409.17805, section 3.2).

Legend: K classes, R texts of a forward, T text tokens, N context tokens, W text width, E joint width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.internals import embed_tokens, unit_norm
from prompted_clip.prompts import join_groups
from prompted_clip.text import embed_text
from training.initial_prompts import init_from_words, random_prompts
from training.prompted_backbone import PromptedBackbone

Position = Literal["end", "middle", "front"]

CONTEXT_TEMPLATE: Final = "{}."
"""What stands behind a context: the class name and a full stop, as in CoOp's repository."""


def init_context(
    backbone: Backbone, words: str, n_tokens: int, generator: torch.Generator, *, n_sets: int = 1
) -> Tensor:
    """Contexts as training begins with them: the embeddings of words, or N(0, 0.02²).

    Args:
        backbone: owner of tokenizer and embeddings.
        words: such as "a photo of a"; their tokens decide N. Empty: random.
        n_tokens: N of a random context.
        generator: of random contexts.
        n_sets: how many; those from words all start alike.

    Returns:
        [n_sets, N, W] float32, on the CPU.
    """
    n_tokens = len(backbone.tokenizer.encode(words)) or n_tokens
    contexts = random_prompts(n_sets, n_tokens, backbone.text_width, generator)
    for context_1NW in contexts.unsqueeze(1):
        init_from_words(context_1NW, backbone, words)
    return contexts


@dataclass(frozen=True, eq=False)
class ContextTexts:
    """Tokenised class texts that know where a context goes; see `place_context`.

    Attributes:
        base_model: whose text tower and boosting prompts encode them.
        ids_KT: token ids without the context, int64, padding 0.
        eot_K: EOT positions with the context and without boosting prompts.
        order_KT: [K, T + N], for each position of the sequence its index in [tokens, context].
        n_before: context tokens in front of the class name.
    """

    base_model: PromptedBackbone
    ids_KT: Tensor
    eot_K: Tensor
    order_KT: Tensor
    n_before: int

    def encode(self, context: Tensor, classes_R: Tensor | None = None) -> Tensor:
        """g, the features of class texts with a context: `embed` at length 1, [R, E] float32."""
        return unit_norm(self.embed(context, classes_R))

    def embed(self, context: Tensor, classes_R: Tensor | None = None) -> Tensor:
        """Embeddings of class texts with a context, before they are brought to length 1.

        Args:
            context: [N, W], the same for all texts, or [R, N, W], one per text.
            classes_R: each text's class, int64; None is every class once, in order (R = K).

        Returns:
            [R, E]; gradients flow to the context.
        """
        backbone = self.base_model.backbone
        ids, eot, order = (
            per_class if classes_R is None else per_class[classes_R]
            for per_class in (self.ids_KT, self.eot_K, self.order_KT)
        )
        words_RTW = embed_tokens(backbone.clip, ids)
        context_RNW = context.to(words_RTW.dtype).expand(len(words_RTW), -1, -1)
        x_RTW = torch.cat([words_RTW, context_RNW], dim=1).take_along_dim(order.unsqueeze(-1), dim=1)
        boost = join_groups([self.base_model.text_boost])
        return embed_text(backbone, x_RTW, eot, boost, start=1 + self.n_before)


def place_context(
    base_model: PromptedBackbone, class_names: Sequence[str], n_tokens: int, position: Position = "end"
) -> ContextTexts:
    """Tokenise class names and find their place in, behind or in front of a context of N tokens.

        end      [SOS, context, boost, name, ".", EOT]
        middle   [SOS, first ⌊N/2⌋ of the context, boost, name, rest of the context, ".", EOT]
        front    [SOS, boost, name, context, ".", EOT]

    Source: CoOp (arXiv 2109.01134), section 3.2; its repository halves an odd context the same way. CasPL (arXiv
    2409.17805, section 3.2) defines the order for `end` alone; in the other two boosting prompts keep the place it
    gives them, right in front of the class name, which is an inference.

    Args:
        base_model: text tower and boosting prompts.
        class_names: K names.
        n_tokens: N.
        position: of the class name.

    Raises:
        TextTooLongError: names the first class that does not fit with context and boosting prompts.
    """
    tokens = base_model.tokenize(class_names, CONTEXT_TEMPLATE, n_prompts=n_tokens)
    n_before = {"end": n_tokens, "middle": n_tokens // 2, "front": 0}[position]
    width = tokens.ids_KT.shape[1]
    first, rest = range(width, width + n_before), range(width + n_before, width + n_tokens)
    # The full stop is the last token before EOT, so what follows the name is found without tokenising it alone.
    stops = (tokens.eot_K - 1).tolist()
    order = [[0, *first, *range(1, stop), *rest, *range(stop, width)] for stop in stops]
    device = base_model.backbone.device
    return ContextTexts(
        base_model=base_model,
        ids_KT=tokens.ids_KT.to(device),
        eot_K=tokens.eot_K.to(device) + n_tokens,
        order_KT=torch.tensor(order, device=device),
        n_before=n_before,
    )
