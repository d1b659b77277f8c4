"""infinity with a CLIP model folder in transformers' format: random weights in the backbone's shape."""

import gzip
import json
import os
import sys
from pathlib import Path

from benchmarks.peers import arguments

N_MERGES = 49_152 - 256 - 2
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def convert(options: arguments.Arguments) -> None:
    """Write config, weights, image processor and tokenizer."""
    import open_clip  # noqa: PLC0415  not needed to serve
    import torch  # noqa: PLC0415
    from open_clip.tokenizer import bytes_to_unicode, default_bpe  # noqa: PLC0415
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer  # noqa: PLC0415

    torch.manual_seed(0)
    shape = open_clip.get_model_config(options.backbone)
    vision = shape["vision_cfg"]
    tower = {
        "hidden_size": vision["width"],
        "intermediate_size": 4 * vision["width"],
        "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        "num_hidden_layers": vision["layers"],
        "patch_size": vision["patch_size"],
        "image_size": vision["image_size"],
        "hidden_act": "gelu",
    }
    CLIPModel(CLIPConfig(vision_config=tower, projection_dim=shape["embed_dim"])).eval().save_pretrained(options.model)
    CLIPImageProcessor().save_pretrained(options.model)
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        merges = [line.strip() for line in file][1 : N_MERGES + 1]
    letters = list(bytes_to_unicode().values())
    pairs = ["".join(merge.split()) for merge in merges]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *pairs, *SPECIAL]
    vocabulary, rules = options.model / "vocab.json", options.model / "merges.txt"
    vocabulary.write_text(json.dumps({word: index for index, word in enumerate(words)}))
    rules.write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokenizer = CLIPTokenizer(str(vocabulary), str(rules))
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(options.model)


def serve(options: arguments.Arguments) -> None:
    """Become infinity's own command, with its torch engine, the one that serves CLIP.

    A batch holds the requests of all clients. With `--device cpu` the model stays in float32 for `float16` and
    `bfloat16`. transformers' fast image processor is no faster here: nearly all time goes to the forward pass.
    """
    program = str(Path(sys.executable).with_name("infinity_emb"))
    words = ["v2", "--model-id", str(options.model), "--served-model-name", "clip", "--engine", "torch"]
    words += ["--device", "cpu", "--dtype", options.dtype, "--batch-size", "16"]
    words += ["--no-model-warmup", "--no-bettertransformer"]  # the load warms up; transformers removed the latter
    words += ["--host", "127.0.0.1", "--port", str(options.port)]
    os.environ |= {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    os.execv(program, [program, *words])  # noqa: S606  our own command


if __name__ == "__main__":
    given = arguments.read()
    if given.convert:
        convert(given)
    else:
        serve(given)
