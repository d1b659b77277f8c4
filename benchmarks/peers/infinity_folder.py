"""Write a CLIP model folder for infinity: random weights in ViT-B-16's shape and open_clip's vocabulary.

python -m benchmarks.peers.infinity_folder FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

N_MERGES = 49_152 - 256 - 2
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 16}


def write_folder(folder: Path) -> None:
    """Config, weights, image processor and tokenizer."""
    import gzip  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = CLIPConfig(vision_config={**VISION, "num_hidden_layers": 12, "image_size": 224}, projection_dim=512)
    CLIPModel(config).eval().save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        merges = [line.strip() for line in file][1 : N_MERGES + 1]
    letters = list(bytes_to_unicode().values())
    words = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(merge.split()) for merge in merges),
        *SPECIAL,
    ]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]))
