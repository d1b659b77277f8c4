"""The demo world's colours, textures, shapes and classes.

`shapes`, `textures` and `render` draw them, `captions` describes them.
"""

from typing import Final

COLOURS: Final = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
HUES: Final = (0.0, 0.075, 0.155, 0.34, 0.50, 0.63, 0.77, 0.90)
TEXTURES: Final = ("plain", "striped", "dotted", "checkered", "gridded", "ringed", "speckled", "faded")
SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "donut", "heart", "crescent", "hexagon", "arrow")

N_COLOURS: Final = len(COLOURS)
N_TEXTURES: Final = len(TEXTURES)
N_SHAPES: Final = len(SHAPES)
N_CLASSES: Final = N_TEXTURES * N_SHAPES

IMAGE_SIZE: Final = 64

Pair = tuple[int, int]
"""A class as (texture index, shape index)."""


def _labelled_pairs() -> tuple[Pair, ...]:
    """List the classes in label order: diagonals of the texture x shape table.

    The first half of the labels combines texture t with the shapes t, t+1, ..., t+4, the second half with the other
    five. Both halves (base and new, as in CoOp) therefore contain every texture and every shape.
    """
    return tuple((k % N_TEXTURES, (k // N_TEXTURES + k % N_TEXTURES) % N_SHAPES) for k in range(N_CLASSES))


PAIRS: Final = _labelled_pairs()
LABEL_OF_PAIR: Final = {pair: label for label, pair in enumerate(PAIRS)}
CLASS_NAMES: Final = tuple(f"{TEXTURES[t]} {SHAPES[s]}" for t, s in PAIRS)

HELD_OUT: Final = frozenset((t, s) for t, s in PAIRS if (s - 3 * t) % 5 == 0)
"""The 16 pairs that pre-training excludes: two shapes per texture, one base and one new."""
SEEN_PAIRS: Final = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
HELD_OUT_LABELS: Final = tuple(LABEL_OF_PAIR[pair] for pair in PAIRS if pair in HELD_OUT)

BASE_LABELS: Final = tuple(range(N_CLASSES // 2))
NEW_LABELS: Final = tuple(range(N_CLASSES // 2, N_CLASSES))
