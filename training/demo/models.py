"""The demo models, created by open_clip from the packaged configurations.

During training the token embedding only has rows for tokens in the captions. `export_weights` scatters them into the
full table (other rows are zero) and writes float16 safetensors that `open_clip.create_model` loads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import open_clip
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from training.files import write_atomic

Arch = Literal["demo-student", "demo-teacher", "demo-second-teacher"]

CONFIG_DIR: Final = Path(__file__).parents[2] / "prompted_clip" / "demo"
EMBEDDING: Final = "token_embedding.weight"


def create(arch: str, weights: Path | None = None) -> open_clip.CLIP:
    """Create a demo model with open_clip, with random or exported weights.

    Raises:
        FileNotFoundError: the weights file is missing.
    """
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"no weights for {arch} at {weights}; train them with `make demo-train`")
    open_clip.add_model_config(CONFIG_DIR)
    model = open_clip.create_model(arch, pretrained=None if weights is None else str(weights))
    if not isinstance(model, open_clip.CLIP):
        raise TypeError(f"open_clip created a {type(model).__name__} for {arch}, not a CLIP")
    return model


def keep_rows(model: open_clip.CLIP, vocabulary_V: Tensor) -> None:
    """Reduce the token embedding to the rows of `vocabulary_V`, in place."""
    rows_VD = model.token_embedding.weight.detach()[vocabulary_V].clone()
    model.token_embedding = nn.Embedding(len(rows_VD), rows_VD.shape[1], _weight=rows_VD)


def encode_text(model: open_clip.CLIP, tokens_KT: Tensor) -> Tensor:
    """Encode captions truncated to T <= 77 tokens, with the same result as open_clip's `encode_text` on padded ones.

    The text tower is causal and pools at the end token, so padding has no effect.

    Returns:
        unit-norm features [K, E].
    """
    n_tokens = tokens_KT.shape[1]
    x_KTD = model.token_embedding(tokens_KT) + model.positional_embedding[:n_tokens]
    x_KTD = model.ln_final(model.transformer(x_KTD, attn_mask=model.attn_mask[:n_tokens, :n_tokens]))
    pooled_KD = x_KTD[torch.arange(len(tokens_KT)), tokens_KT.argmax(1)]
    return F.normalize(pooled_KD @ model.text_projection, dim=-1)


def normalise_pixels(pixels_NCHW: Tensor) -> Tensor:
    """Normalize uint8 pixels with open_clip's default (OpenAI's) mean and standard deviation."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
    return (pixels_NCHW.float() / 255 - mean) / std


def grow(small: Mapping[str, Tensor], large: open_clip.CLIP) -> dict[str, Tensor]:
    """Copy a model's vision blocks into a deeper model without changing its output.

    New blocks are inserted between the old ones with zero output projections, so that they initially add nothing to the
    residual stream (as Net2Net, arXiv 1511.05641, for depth).

    Args:
        small: state of the shallower model, with equal widths.
        large: the deeper model; provides the other weights of the new blocks.

    Returns:
        a state for `large`.

    Raises:
        ValueError: `large` has fewer blocks than `small`.
    """
    prefix = "visual.transformer.resblocks."
    n_small = len({key.split(".")[3] for key in small if key.startswith(prefix)})
    n_large = len(large.visual.transformer.resblocks)
    if n_large < n_small:
        raise ValueError(f"cannot grow {n_small} vision blocks into {n_large}")
    place = {round(i * (n_large - 1) / max(1, n_small - 1)): i for i in range(n_small)}
    grown = {key: value.clone() for key, value in small.items() if not key.startswith(prefix)}
    for key, value in large.state_dict().items():
        if not key.startswith(prefix):
            continue
        index, name = key.removeprefix(prefix).split(".", 1)
        if int(index) in place:
            grown[key] = small[f"{prefix}{place[int(index)]}.{name}"].clone()
        elif name.startswith(("attn.out_proj", "mlp.c_proj")):
            grown[key] = torch.zeros_like(value)
        else:
            grown[key] = value.clone()
    return grown


def exported_state(path: Path, vocabulary_V: Tensor) -> dict[str, Tensor]:
    """Read a file of `export_weights` as the float32 state of a model with `keep_rows`."""
    state = {key: value.float() for key, value in load_file(path).items()}
    state[EMBEDDING] = state[EMBEDDING][vocabulary_V]
    return state


def export_weights(model: open_clip.CLIP, vocabulary_V: Tensor, path: Path) -> int:
    """Write a trained model as float16 safetensors with open_clip's names.

    Returns:
        the file's size in bytes.
    """
    state = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    rows_VD = state[EMBEDDING]
    table = torch.zeros(model.vocab_size, rows_VD.shape[1], dtype=torch.float16)
    table[vocabulary_V] = rows_VD
    state[EMBEDDING] = table
    data = save(state)
    write_atomic(path, data)
    return len(data)
