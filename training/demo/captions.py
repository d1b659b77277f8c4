"""How the demo world is worded: captions of several kinds and templates, tokenised by open_clip's own tokenizer.

A *kind* says which attributes a caption names: "texture shape" captions name the class, "colour shape" captions leave
the texture out, and so on. Pairs held out of pre-training appear in no caption of `CaptionBook`.
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
    """Put a phrase into a template, with "an" where English wants it."""
    return template.format(phrase).replace("a orange", "an orange")


@cache
def tokenizer() -> SimpleTokenizer:
    """Load open_clip's tokenizer once."""
    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


def tokenise(captions: list[str]) -> Tensor:
    """Tokenise captions and cut them after the longest one's end token: int64 [K, T]."""
    tokens_KT: Tensor = tokenizer()(captions)
    return tokens_KT[:, : int(tokens_KT.argmax(1).max()) + 1]


def phrases(kind: Kind) -> list[str]:
    """List every phrase of one kind, in the order that `targets` counts."""
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
    """Say which phrase of a kind is true of each picture: int64 [N].

    Raises:
        KeyError: the kind names texture and shape, and a picture shows a pair held out of pre-training.
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
    """Every caption of pre-training, tokenised once, its token ids renumbered without gaps.

    Only the tokens that occur get a number, in the order of their ids, so the end token keeps the highest one (CLIP
    pools there) and a model in training needs as many embedding rows as there are tokens, not the whole vocabulary.
    """

    def __init__(self) -> None:
        wide = {(kind, t): tokenise([fill(t, p) for p in phrases(kind)]) for kind in KINDS for t in TEMPLATES}
        self.vocabulary_V = torch.unique(torch.cat([tokens.flatten() for tokens in wide.values()]))
        self._tokens = {key: torch.searchsorted(self.vocabulary_V, tokens.contiguous()) for key, tokens in wide.items()}

    def tokens(self, kind: Kind, template: str) -> Tensor:
        """Renumbered tokens of every caption of a kind in one template: int64 [K, T]."""
        return self._tokens[kind, template]
