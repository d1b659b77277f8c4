"""The prompted text tower.

Sequence (CasPL, arXiv 2409.17805, section 3.2): [SOS, adapting prompts, boosting prompts, class text, EOT]. Positional
embeddings are added to all tokens, prompts included. The tower is causal, so tokens behind EOT do not affect the
features: texts are padded to the longest of them, not to 77 positions.

Legend: K texts, T text tokens, P prompt positions, E joint width.
"""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prompted_clip import internals
from prompted_clip.backbone import Backbone
from prompted_clip.errors import TextTooLongError
from prompted_clip.prompts import PromptGrid, run_blocks

TEXTS_AT_ONCE: Final = 256
"""Most texts per forward: bounds the memory and, on a CPU, the interval between progress reports."""


def tokenize(backbone: Backbone, texts: Sequence[str], *, n_prompts: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids and EOT positions of one or more texts, padded to the longest and never truncated.

    Returns:
        Ids [K, T] int64 (padding 0) and EOT positions [K] int64, both before prompts are inserted, on the CPU.

    Raises:
        TextTooLongError: names the first text that does not fit together with `n_prompts` prompt tokens.
    """
    tokenizer = backbone.tokenizer
    rows = [[tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) + n_prompts > backbone.context_length:
            msg = (
                f"The text {text!r} takes {len(row)} tokens and {n_prompts} prompt tokens, but the text tower has "
                f"{backbone.context_length} positions. Shorten the class name or use fewer prompt tokens."
            )
            raise TextTooLongError(msg)
    ids_KT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return ids_KT, torch.tensor([len(row) - 1 for row in rows])


def encode_tokens(backbone: Backbone, tokens_KT: Tensor, eot_K: Tensor, grid: PromptGrid | None = None) -> Tensor:
    """g, the features of texts from `tokenize`, on any device: `embed_text`, normalised, [K, E] float32."""
    x = internals.embed_tokens(backbone.clip, tokens_KT.to(backbone.device))
    return internals.unit_norm(embed_text(backbone, x, eot_K, grid))


def embed_text(
    backbone: Backbone, x_KTW: Tensor, eot_K: Tensor, grid: PromptGrid | None = None, *, start: int = 1
) -> Tensor:
    """The text tower's output before normalisation, from token embeddings.

    Args:
        backbone: the frozen CLIP.
        x_KTW: token embeddings without positions, the start token first.
        eot_K: EOT positions in `x_KTW`, before prompts are inserted.
        grid: text prompts, adapting before boosting; shared by all texts or one per text; None is the plain tower.
        start: prompts are inserted in front of this position of `x_KTW`.

    Returns:
        [K, E] in the backbone's dtype.
    """
    clip, eot_K = backbone.clip, eot_K.to(backbone.device)
    x = x_KTW
    if grid is not None:
        x = torch.cat([x[:, :start], grid.layer(0, x.shape[0]).to(x.dtype), x[:, start:]], dim=1)
        eot_K = eot_K + grid.n_tokens
    x = internals.add_positions(clip, x)
    mask = internals.causal_mask(clip, x.shape[1])
    x = run_blocks(internals.text_blocks(clip), x, grid, start=start, read=eot_K, mask=mask)
    return internals.project_text(clip, x.squeeze(1))


def encode_classes(
    backbone: Backbone,
    class_texts: Sequence[str],
    templates: Sequence[str],
    grid: PromptGrid | None = None,
    *,
    max_texts: int = TEXTS_AT_ONCE,
    on_progress: Callable[[], None] = lambda: None,
) -> Tensor:
    """Class features as an ensemble over templates, the normalised mean of unit features: [K, E] float32.

    Source: CLIP (arXiv 2103.00020), section 3.1.4. A class's text replaces `{}` in each template. All texts of a
    template are padded to the same length, so `max_texts` per forward changes features by rounding only. The prompts
    are shared by all classes or one grid per class. Progress is reported after each forward.

    Raises:
        TextTooLongError: a class does not fit together with its template and prompts.
    """
    per_template = []
    for template in templates:
        texts = [template.replace("{}", text) for text in class_texts]
        ids_KT, eot_K = tokenize(backbone, texts, n_prompts=grid.n_tokens if grid is not None else 0)
        parts = []
        for start in range(0, len(texts), max_texts):
            rows = slice(start, start + max_texts)
            parts.append(encode_tokens(backbone, ids_KT[rows], eot_K[rows], grid and grid.rows(rows)))
            on_progress()
        per_template.append(torch.cat(parts))
    if len(per_template) == 1:
        return per_template[0]
    return internals.unit_norm(torch.stack(per_template).mean(dim=0))
