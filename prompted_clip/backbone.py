"""Loads a frozen CLIP through open_clip: from a pretrained tag, a local file, the demo, or a random seed."""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from open_clip.model import CLIP

from prompt_store.manifest import BackboneSpec
from prompted_clip import internals
from prompted_clip.errors import WeightsError
from prompted_clip.preprocess import RESIZE_MODES

logger = logging.getLogger(__name__)

DEMO_FOLDER: Final = Path(__file__).parent / "demo"
WEIGHT_SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CLIP and the facts that prompts depend on.

    Attributes:
        clip: open_clip's model in eval mode, no gradients.
        arch: open_clip's model name.
        pretrained: the source of the weights: a tag, a file name, `demo` or `random:<seed>`.
        fingerprint: see `fingerprint_weights`.
        preprocess: open_clip's preprocessing as JSON values (size, mean, std, interpolation, resize_mode, …).
        logit_scale: s = exp(t), the multiplier of cosine similarities.
    """

    clip: CLIP
    tokenizer: open_clip.SimpleTokenizer
    arch: str
    pretrained: str
    fingerprint: str
    preprocess: dict[str, Any]
    logit_scale: float
    device: torch.device
    dtype: torch.dtype

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return int(self.clip.visual.image_size[0])

    @property
    def n_vision_layers(self) -> int:
        """Blocks of the image tower, the maximum depth of image prompts."""
        return len(internals.vision_blocks(self.clip))

    @property
    def n_text_layers(self) -> int:
        """Blocks of the text tower, the maximum depth of text prompts."""
        return len(internals.text_blocks(self.clip))

    @property
    def vision_width(self) -> int:
        """Width of the image tower's tokens."""
        return int(self.clip.visual.transformer.width)

    @property
    def text_width(self) -> int:
        """Width of the text tower's tokens."""
        return int(self.clip.transformer.width)

    @property
    def embed_dim(self) -> int:
        """E, the width of the joint space."""
        return int(self.clip.visual.output_dim)

    @property
    def context_length(self) -> int:
        """Positions of the text tower, 77 in CLIP."""
        return int(self.clip.context_length)

    def spec(self) -> BackboneSpec:
        """The manifest's description of this backbone."""
        return BackboneSpec(
            arch=self.arch,
            pretrained=self.pretrained,
            fingerprint=self.fingerprint,
            image_size=self.image_size,
            preprocess=self.preprocess,
        )


def load_backbone(
    arch: str,
    *,
    pretrained: str | None = None,
    random_seed: int | None = None,
    quick_gelu: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Load a CLIP by open_clip name, in eval mode and without gradients.

    Args:
        arch: an open_clip ViT model name, or `demo-student` (packaged) or `demo-teacher` (in a source checkout).
        pretrained: an open_clip tag (fetched once, then cached) or a local `.safetensors` / `.pt` file, read with
            weights-only loading.
        random_seed: take random weights from this seed instead; for tests and benchmarks.
        quick_gelu: use QuickGELU with a local file of OpenAI's weights; tags that need it enable it.
        device: where the model runs.
        dtype: type of the weights; embeddings stay float32, as open_clip keeps them.

    Raises:
        WeightsError: unknown architecture, missing or unreadable weights, none named, or an unsupported model family.
    """
    _register_demo_models()
    known = open_clip.list_models()
    if arch not in known:
        near = [name for name in known if name.startswith(arch[:5])][:8]
        examples = f", such as {', '.join(near)}" if near else ""
        msg = f"Unknown backbone {arch!r}. open_clip has {len(known)} models{examples}."
        raise WeightsError(msg)
    source, name = _weights_source(arch, pretrained, random_seed)
    tag = (open_clip.get_pretrained_cfg(arch, source) if source else None) or {}
    with _named_failure(arch, name), torch.random.fork_rng(enabled=random_seed is not None):
        if random_seed is not None:
            torch.manual_seed(random_seed)
        model, *_ = open_clip.create_model_and_transforms(
            arch,
            pretrained=source,
            force_quick_gelu=quick_gelu or tag.get("quick_gelu", False),
            require_pretrained=random_seed is None,
            weights_only=True,
        )
    clip = internals.check_supported(model, arch)
    fingerprint = fingerprint_weights(clip)
    preprocess = json.loads(json.dumps(open_clip.get_model_preprocess_cfg(clip)))
    if preprocess["resize_mode"] not in RESIZE_MODES:
        msg = f"Backbone {arch!r} has resize mode {preprocess['resize_mode']!r}; supported: {', '.join(RESIZE_MODES)}."
        raise WeightsError(msg)
    if torch.device(device).type == "cuda":
        # cuDNN's attention, torch's choice on some GPUs, plans for up to a second per new shape; flash attention does
        # not and is about as fast.
        torch.backends.cuda.enable_cudnn_sdp(False)
    clip = clip.eval().requires_grad_(False).to(device)
    if dtype != torch.float32:
        open_clip.convert_weights_to_lp(clip, dtype=dtype)
        # open_clip leaves them in float32; torch's CUDA kernel needs one dtype, and computes in float32 anyway.
        for module in clip.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.to(dtype)
    logger.info("backbone.loaded", extra={"arch": arch, "pretrained": name, "fingerprint": fingerprint})
    return Backbone(
        clip=clip,
        tokenizer=_tokenizer(arch),
        arch=arch,
        pretrained=name,
        fingerprint=fingerprint,
        preprocess=preprocess,
        logit_scale=math.exp(float(clip.logit_scale)),
        device=torch.device(device),
        dtype=dtype,
    )


def fingerprint_weights(clip: CLIP) -> str:
    """`sha256:` and 64 digits over weights and architecture, whatever the weights' order and dtype (as float32)."""
    digest = hashlib.sha256(json.dumps(internals.architecture_facts(clip), sort_keys=True).encode())
    for name, tensor in sorted(clip.state_dict().items()):
        weights = tensor.to("cpu", torch.float32).contiguous()
        digest.update(json.dumps([name, list(weights.shape)]).encode())
        digest.update(weights.numpy().data)
    return f"sha256:{digest.hexdigest()}"


def vision_config(arch: str) -> dict[str, Any]:
    """open_clip's configuration of an architecture's image tower, without loading it; empty for unknown ones."""
    _register_demo_models()
    return dict((open_clip.get_model_config(arch) or {}).get("vision_cfg", {}))


def _register_demo_models() -> None:
    if "demo-student" not in open_clip.list_models():
        open_clip.add_model_config(DEMO_FOLDER)


def _weights_source(arch: str, pretrained: str | None, random_seed: int | None) -> tuple[str | None, str]:
    """open_clip's `pretrained` argument, and the name in manifests."""
    packaged = DEMO_FOLDER / f"{arch}.safetensors"
    if random_seed is not None:
        if pretrained is None:
            return None, f"random:{random_seed}"
        msg = f"Backbone {arch!r} got both weights ({pretrained!r}) and a random seed; pass only one."
    elif pretrained is not None:
        if not pretrained.endswith(WEIGHT_SUFFIXES):
            return pretrained, pretrained
        if Path(pretrained).is_file():
            return pretrained, Path(pretrained).name
        msg = f"No weights file at {pretrained!r} for backbone {arch!r}."
    elif packaged.exists():
        return str(packaged), "demo"
    elif arch.startswith("demo-"):
        msg = f"The weights of {arch!r} are not in the installed package; the source checkout has {packaged.name}."
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none known for it"
        msg = (
            f"Backbone {arch!r} needs weights: pass a pretrained tag ({tags}) "
            "or a local .safetensors or .pt file. For tests, use random weights."
        )
    raise WeightsError(msg)


@contextlib.contextmanager
def _named_failure(arch: str, name: str) -> Iterator[None]:
    """Raise errors of open_clip, torch and the hub as WeightsError."""
    try:
        yield
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        msg = f"Could not load backbone {arch!r} with weights {name!r}: {first_line}"
        raise WeightsError(msg) from error


def _tokenizer(arch: str) -> open_clip.SimpleTokenizer:
    tokenizer = open_clip.get_tokenizer(arch)
    if not isinstance(tokenizer, open_clip.SimpleTokenizer):
        msg = f"Backbone {arch!r} uses a {type(tokenizer).__name__}; only open_clip's own BPE tokenizer is supported."
        raise WeightsError(msg)
    return tokenizer
