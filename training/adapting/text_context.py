"""A learnable context in the text tower: initialisation, position of the class name, text features, and meta-net.

CoOp (arXiv 2109.01134, section 3.2) allows three positions of the class name. A context has depth 1: it is inserted
into the token embeddings and flows through all layers, while boosting prompts are deep (CasPL, arXiv 2409.17805,
section 3.2).

Legend: B rows, K classes, R texts of a forward, T text tokens, N context tokens, W text width, E joint width.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from prompted_clip.backbone import Backbone
from prompted_clip.internals import embed_tokens, unit_norm
from prompted_clip.prompts import join_groups
from prompted_clip.text import embed_text
from training.initial_prompts import init_from_words, random_prompts, seeded_linear
from training.prompted_backbone import PromptedBackbone

Position = Literal["end", "middle", "front"]

CONTEXT_TEMPLATE: Final = "{}."
"""Text after a context: class name and full stop, as in CoOp's repository."""


def init_context(
    backbone: Backbone, words: str, n_tokens: int, generator: torch.Generator, *, n_sets: int = 1
) -> Tensor:
    """Initial contexts: word embeddings, or N(0, 0.02²).

    Args:
        backbone: provides tokenizer and token embeddings.
        words: such as "a photo of a"; N is their number of tokens. Empty: random.
        n_tokens: N of a random context.
        generator: for random contexts.
        n_sets: number of contexts; all start equal if initialised from words.

    Returns:
        [n_sets, N, W] float32, on the CPU.
    """
    n_tokens = len(backbone.tokenizer.encode(words)) or n_tokens
    contexts = random_prompts(n_sets, n_tokens, backbone.text_width, generator)
    for context_1NW in contexts.unsqueeze(1):
        init_from_words(context_1NW, backbone, words)
    return contexts


def init_meta_net(
    backbone: Backbone, reduction: int, activation: nn.Module, n_out: int, generator: torch.Generator
) -> nn.Sequential:
    """Two layers on the backbone's device from features [B, E] to [B, n_out], with E / `reduction` hidden units."""
    hidden, device = max(1, backbone.embed_dim // reduction), backbone.device
    return nn.Sequential(
        OrderedDict(
            linear1=seeded_linear(backbone.embed_dim, hidden, generator, device),
            activation=activation,
            linear2=seeded_linear(hidden, n_out, generator, device),
        )
    )


@dataclass(frozen=True, eq=False)
class ContextTexts:
    """Tokenised class texts with the positions of a context; see `place_context`.

    Attributes:
        base_model: provides text tower and boosting prompts.
        ids_KT: token ids without the context, int64, padded with 0.
        eot_K: EOT positions, counting the context but not boosting prompts.
        order_KT: [K, T + N]; maps each position of the sequence to its index in [tokens, context].
        n_before: context tokens before the class name.
    """

    base_model: PromptedBackbone
    ids_KT: Tensor
    eot_K: Tensor
    order_KT: Tensor
    n_before: int

    def encode(self, context: Tensor, classes_R: Tensor | None = None) -> Tensor:
        """g: text features with a context, [R, E] float32, unit norm; see `embed`."""
        return unit_norm(self.embed(context, classes_R))

    def embed(self, context: Tensor, classes_R: Tensor | None = None) -> Tensor:
        """Unnormalised text embeddings with a context.

        Args:
            context: [N, W] for all texts, or [R, N, W] with one per text.
            classes_R: class of each text, int64; None for all classes in order (R = K).

        Returns:
            [R, E]; differentiable with respect to the context.
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
    base_model: PromptedBackbone,
    class_names: Sequence[str],
    n_tokens: int,
    position: Position = "end",
    template: str = CONTEXT_TEMPLATE,
) -> ContextTexts:
    """Tokenise class names and compute their positions relative to a context of N tokens.

        end      [SOS, context, boost, name, ".", EOT]
        middle   [SOS, first ⌊N/2⌋ of the context, boost, name, rest of the context, ".", EOT]
        front    [SOS, boost, name, context, ".", EOT]

    Source: CoOp (arXiv 2109.01134), section 3.2. Its repository splits an odd N the same way, and takes as many tokens
    for the name as the name has on its own: in "what?." the full stop shares a token with "?" and stays in the name.
    CasPL (arXiv 2409.17805, section 3.2) defines the order for `end` only; for the other two we infer that boosting
    prompts also directly precede the class name.

    Args:
        base_model: provides text tower and boosting prompts.
        class_names: K names.
        n_tokens: N.
        position: of the class name.
        template: text behind the context; other than `{}.` for `end` only.

    Raises:
        TextTooLongError: a class name with context and boosting prompts exceeds the text tower's context length; names
            the first such class.
    """
    tokens = base_model.tokenize(class_names, template, n_prompts=n_tokens)
    n_before = {"end": n_tokens, "middle": n_tokens // 2, "front": 0}[position]
    width = tokens.ids_KT.shape[1]
    first, rest = range(width, width + n_before), range(width + n_before, width + n_tokens)
    name_ends = [1 + len(base_model.backbone.tokenizer.encode(name)) for name in class_names]
    # The text may have fewer tokens than the name: EOT stays last.
    stops = [min(name_end, eot) for name_end, eot in zip(name_ends, tokens.eot_K.tolist(), strict=True)]
    order = [[0, *first, *range(1, stop), *rest, *range(stop, width)] for stop in stops]
    device = base_model.backbone.device
    return ContextTexts(
        base_model=base_model,
        ids_KT=tokens.ids_KT.to(device),
        eot_K=tokens.eot_K.to(device) + n_tokens,
        order_KT=torch.tensor(order, device=device),
        n_before=n_before,
    )
