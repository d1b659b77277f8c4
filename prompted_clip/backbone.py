"""Loads a frozen CLIP through open_clip: from a pretrained tag, a local file or folder, the demo, or a random seed."""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

import open_clip
import torch
from open_clip.model import CLIP

from prompt_store.manifest import BackboneSpec
from prompted_clip import internals
from prompted_clip.errors import WeightsError
from prompted_clip.preprocess import RESIZE_MODES
from prompted_clip.sources import HF_HUB, LOCAL_DIR, find_weights, register_architectures, unrecorded_values
from prompted_clip.weight_checks import load_weights
from prompted_clip.weight_files import OPENAI_FACTS, read_weights

logger = logging.getLogger(__name__)


class WeightOptions(TypedDict, total=False):
    """Options of `load_backbone` for local files, which do not record these facts."""

    quick_gelu: bool
    preprocess_of: str | None
    interpolate_positions: bool


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
    def identity(self) -> dict[str, str]:
        """Architecture, source of the weights and fingerprint, for provenance and reports."""
        return {"arch": self.arch, "pretrained": self.pretrained, "fingerprint": self.fingerprint}

    @cached_property
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
    preprocess_of: str | None = None,
    interpolate_positions: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Load a CLIP, in eval mode and without gradients.

    Names, shapes and values of the weights are checked. Logs the weights in use, and a warning for every change to
    them and for values that the file does not record.

    Args:
        arch: an open_clip ViT model name; `local-dir:FOLDER` or `hf-hub:ORG/NAME`, with weights; `demo-student`
            (packaged) or `demo-teacher` (in a source checkout).
        pretrained: an open_clip tag (fetched once, then cached) or a local file: safetensors, a PyTorch state dict, or
            OpenAI's TorchScript archive.
        random_seed: take random weights from this seed instead; for tests and benchmarks.
        quick_gelu: use QuickGELU with a local file of OpenAI's weights, or random ones; tags, folders and OpenAI's own
            archives record their activation.
        preprocess_of: the tag whose preprocessing and activation a local file needs, instead of open_clip's defaults
            and `quick_gelu`.
        interpolate_positions: resize positional embeddings of another image grid or text length.
        device: where the model runs.
        dtype: type of the weights; embeddings stay float32, as open_clip keeps them.

    Raises:
        WeightsError: unknown architecture, an unsupported model family, or weights that are missing, unreadable or do
            not fit.
    """
    source = find_weights(arch, pretrained, random_seed=random_seed, preprocess_of=preprocess_of)
    tensors = read_weights(source.path) if source.path is not None else {}
    is_openai = not OPENAI_FACTS.isdisjoint(tensors)
    is_known = source.is_recorded and source.path is not None
    needs_quick_gelu = source.quick_gelu or is_openai or (quick_gelu and not is_known)
    notes = [f"{source.name} uses GELU: --quick-gelu is ignored."] if quick_gelu and not needs_quick_gelu else []
    with _named_failure(source.arch, source.name), torch.random.fork_rng(enabled=random_seed is not None):
        if random_seed is not None:
            torch.manual_seed(random_seed)
        model = _create_model(source.arch, needs_quick_gelu, dict(source.preprocess))
    clip = internals.check_supported(model, source.arch)
    if source.path is not None:
        with _named_failure(source.arch, source.name):
            notes += load_weights(
                tensors, clip, arch=source.arch, path=source.path, interpolate_positions=interpolate_positions
            )
    del tensors
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
    backbone = Backbone(
        clip=clip,
        tokenizer=_tokenizer(source.arch),
        arch=source.arch,
        pretrained=source.name,
        fingerprint=fingerprint,
        preprocess=preprocess,
        logit_scale=math.exp(float(clip.logit_scale)),
        device=torch.device(device),
        dtype=dtype,
    )
    if note := unrecorded_values(source, preprocess, quick_gelu=_is_quick_gelu(clip)):
        notes.append(note)
    _log_weights(backbone, notes)
    return backbone


def fingerprint_weights(clip: CLIP) -> str:
    """`sha256:` and 64 digits over weights (as float32, in the order of their names) and architecture."""
    digest = hashlib.sha256(json.dumps(internals.architecture_facts(clip), sort_keys=True).encode())
    for name, tensor in sorted(clip.state_dict().items()):
        weights = tensor.to("cpu", torch.float32).contiguous()
        digest.update(json.dumps([name, list(weights.shape)]).encode())
        digest.update(weights.numpy().data)
    return f"sha256:{digest.hexdigest()}"


def vision_config(arch: str) -> dict[str, Any]:
    """open_clip's configuration of an architecture's image tower, without loading it; empty for unknown ones.

    Raises:
        WeightsError: `local-dir:` or `hf-hub:` without a configuration.
    """
    register_architectures()
    if arch.startswith((LOCAL_DIR, HF_HUB)):
        arch = find_weights(arch, None).arch
    return dict((open_clip.get_model_config(arch) or {}).get("vision_cfg", {}))


def _create_model(arch: str, quick_gelu: bool, preprocess: dict[str, Any]) -> torch.nn.Module:
    """A model with random weights."""
    root = logging.getLogger()
    root.addFilter(_drop)  # open_clip warns that the weights are random, which are loaded later
    try:
        model: torch.nn.Module = open_clip.create_model(
            arch, force_quick_gelu=quick_gelu, force_preprocess_cfg=preprocess, pretrained_text=False
        )
    finally:
        root.removeFilter(_drop)
    return model


def _drop(_: logging.LogRecord) -> bool:
    return False


def _is_quick_gelu(clip: CLIP) -> bool:
    return bool(internals.architecture_facts(clip)["quick_gelu"])


def _log_weights(backbone: Backbone, notes: list[str]) -> None:
    for note in notes:
        logger.warning(note)
    facts = {
        **backbone.identity,
        "n_tensors": len(backbone.clip.state_dict()),
        "activation": "QuickGELU" if _is_quick_gelu(backbone.clip) else "GELU",
        "preprocess": backbone.preprocess,
    }
    logger.info("backbone.loaded", extra=facts)


@contextlib.contextmanager
def _named_failure(arch: str, name: str) -> Iterator[None]:
    """Raise errors of open_clip and torch as WeightsError."""
    try:
        yield
    except WeightsError:
        raise
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
