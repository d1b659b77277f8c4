"""Captions of the demo world, tokenized with open_clip's tokenizer.

A caption's *kind* lists the attributes it mentions: "texture shape" captions name the class, "colour shape" captions
omit the texture. Held-out pairs appear in no caption of `CaptionBook`.
Shapes: K captions of one kind, T text tokens.
"""

from functools import cache
from typing import Final, Literal, get_args

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from training.demo.render import Pictures
from training.demo.world import COLOURS, N_COLOURS, N_SHAPES, N_TEXTURES, SEEN_PAIRS, SHAPES, TEXTURES

TEMPLATES: Final = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a {}.",
    "there is a {}.",
    "a drawing of one {}.",
    "one {} on a background.",
    "a close photo of the {}.",
)
CONTEXT_LENGTH: Final = 77

Kind = Literal["texture shape", "colour shape", "colour texture", "texture", "shape", "colour texture shape"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

FULL_CAPTIONS: Final = tuple((colour, t, s) for colour in range(N_COLOURS) for t, s in SEEN_PAIRS)
_ROW_OF_FULL: Final = {attributes: row for row, attributes in enumerate(FULL_CAPTIONS)}
_ROW_OF_SEEN: Final = {pair: row for row, pair in enumerate(SEEN_PAIRS)}


def fill(template: str, phrase: str) -> str:
    """Insert a phrase into a template, with "an" before a vowel."""
    return template.format(phrase).replace("a orange", "an orange")


@cache
def tokenizer() -> SimpleTokenizer:
    """Return open_clip's tokenizer, cached."""
    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


def tokenise(captions: list[str]) -> Tensor:
    """Tokenize captions, truncated after the longest caption's end token: int64 [K, T]."""
    tokens_KT: Tensor = tokenizer()(captions)
    return tokens_KT[:, : int(tokens_KT.argmax(1).max()) + 1]


def phrases(kind: Kind) -> list[str]:
    """List all phrases of one kind, in the order of the indices from `targets`."""
    if kind == "texture shape":
        return [f"{TEXTURES[t]} {SHAPES[s]}" for t, s in SEEN_PAIRS]
    if kind == "colour shape":
        return [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    if kind == "colour texture":
        return [f"{colour} {texture} object" for colour in COLOURS for texture in TEXTURES]
    if kind == "texture":
        return [f"{texture} object" for texture in TEXTURES]
    if kind == "shape":
        return list(SHAPES)
    return [f"{COLOURS[c]} {TEXTURES[t]} {SHAPES[s]}" for c, t, s in FULL_CAPTIONS]


def targets(kind: Kind, pictures: Pictures) -> Tensor:
    """Index of the matching phrase of each picture: int64 [N].

    Raises:
        KeyError: the kind includes texture and shape, and a picture shows a held-out pair.
    """
    colours, textures, shapes = pictures.colours, pictures.textures, pictures.shapes
    if kind == "colour shape":
        return colours * N_SHAPES + shapes
    if kind == "colour texture":
        return colours * N_TEXTURES + textures
    if kind == "texture":
        return textures
    if kind == "shape":
        return shapes
    pairs = list(zip(textures.tolist(), shapes.tolist(), strict=True))
    if kind == "texture shape":
        return torch.tensor([_ROW_OF_SEEN[pair] for pair in pairs])
    return torch.tensor([_ROW_OF_FULL[c, t, s] for c, (t, s) in zip(colours.tolist(), pairs, strict=True)])


class CaptionBook:
    """All captions of pre-training, tokenized once, with contiguous token ids.

    Only tokens that occur get an id, in their original order, so that the end token keeps the highest id (CLIP pools
    there) and training needs embedding rows for these tokens only.
    """

    def __init__(self) -> None:
        wide = {(kind, t): tokenise([fill(t, p) for p in phrases(kind)]) for kind in KINDS for t in TEMPLATES}
        self.vocabulary_V = torch.unique(torch.cat([tokens.flatten() for tokens in wide.values()]))
        self._tokens = {key: torch.searchsorted(self.vocabulary_V, tokens.contiguous()) for key, tokens in wide.items()}

    def tokens(self, kind: Kind, template: str) -> Tensor:
        """Renumbered tokens of all captions of a kind with one template: int64 [K, T]."""
        return self._tokens[kind, template]
