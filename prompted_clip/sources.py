"""Finds the weights of a backbone: an open_clip tag, a local file, a folder in open_clip's layout, the demo, or random.

`local-dir:FOLDER` and `hf-hub:ORG/NAME` name a folder or repository with `open_clip_config.json`, as in open_clip.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import huggingface_hub
import open_clip
from huggingface_hub.errors import EntryNotFoundError
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from prompted_clip.errors import WeightsError, did_you_mean
from prompted_clip.weight_files import check_kind

DEMO_FOLDER: Final = Path(__file__).parent / "demo"
ARCHITECTURES: Final = Path(__file__).parent / "architectures"
"""Configurations of distilled CLIPs that open_clip lacks: CLIP-KD (arXiv 2307.12732), TinyCLIP (arXiv 2309.12314)."""
PREPROCESS_KEYS: Final = ("mean", "std", "interpolation", "resize_mode")
WEIGHTS_FILES: Final = (HF_SAFE_WEIGHTS_NAME, "open_clip_pytorch_model.safetensors", HF_WEIGHTS_NAME)
LOCAL_DIR: Final = "local-dir:"
HF_HUB: Final = "hf-hub:"
WEIGHT_SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin")
HUB_TIMEOUT_S: Final = 5.0
"""Timeout of the first request to the hub, which is not retried."""


@dataclass(frozen=True)
class WeightsSource:
    """The weights of a backbone.

    Attributes:
        arch: open_clip architecture.
        name: in manifests: a tag, a file or folder name, `demo` or `random:<seed>`.
        path: the file to read; None for random weights.
        quick_gelu: whether the weights are known to need QuickGELU.
        preprocess: the preprocessing values that are known; open_clip's defaults apply to others.
        is_recorded: whether preprocessing and activation are known, as they are not for a file alone.
    """

    arch: str
    name: str
    path: Path | None
    quick_gelu: bool = False
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    is_recorded: bool = True


def find_weights(
    arch: str, pretrained: str | None, *, random_seed: int | None = None, preprocess_of: str | None = None
) -> WeightsSource:
    """Find weights, and download them if they are not in the hub's cache.

    Args:
        arch: architecture, `local-dir:FOLDER` or `hf-hub:ORG/NAME`.
        pretrained: a tag or a local file.
        random_seed: use random weights instead.
        preprocess_of: the tag whose preprocessing and activation apply to a local file.

    Raises:
        WeightsError: unknown architecture or tag, no such file, no weights named, or the hub cannot be reached.
    """
    if arch.startswith((LOCAL_DIR, HF_HUB)):
        if pretrained is not None or random_seed is not None or preprocess_of is not None:
            msg = f"{arch} contains weights and preprocessing; pass no other weights and no tag."
            raise WeightsError(msg)
        return _from_folder(arch)
    check_architecture(arch)
    packaged = DEMO_FOLDER / f"{arch}.safetensors"
    if random_seed is not None:
        if pretrained is not None:
            msg = f"Backbone {arch!r} got both weights ({pretrained!r}) and a random seed; pass only one."
            raise WeightsError(msg)
        return WeightsSource(arch, f"random:{random_seed}", None)
    if pretrained is not None:
        return _from_tag_or_file(arch, pretrained, preprocess_of)
    if packaged.exists():
        return WeightsSource(arch, "demo", packaged)
    if arch.startswith("demo-"):
        msg = f"The weights of {arch!r} are not in the installed package; the source checkout has {packaged.name}."
    else:
        msg = (
            f"Backbone {arch!r} needs weights: pass --pretrained (in Python, pretrained=) with a tag ({_tags(arch)}) "
            "or a local .safetensors or .pt file. For tests, use random weights."
        )
    raise WeightsError(msg)


def check_architecture(arch: str) -> None:
    """Check that open_clip has an architecture, and that both towers are open_clip's own.

    open_clip would download the weights of other libraries' towers.

    Raises:
        WeightsError: an unknown name, with similar ones, or a tower of another library.
    """
    register_architectures()
    known = open_clip.list_models()
    if arch not in known:
        near = did_you_mean(arch, known) or " Examples: ViT-B-32, ViT-B-16, ViT-L-14."
        msg = f"Unknown backbone {arch!r}.{near} open_clip has {len(known)} models."
        raise WeightsError(msg)
    config = open_clip.get_model_config(arch)
    for tower, key in (("vision_cfg", "timm_model_name"), ("text_cfg", "hf_model_name")):
        if key in config[tower]:
            msg = f"Backbone {arch!r} does not support prompts: its {config[tower][key]} is not a tower of open_clip."
            raise WeightsError(msg)


def register_architectures() -> None:
    """Make the architectures of the demo and of distilled CLIPs known to open_clip."""
    known = open_clip.list_models()
    for name, folder in (("demo-student", DEMO_FOLDER), ("ViT-T-16", ARCHITECTURES)):
        if name not in known:
            open_clip.add_model_config(folder)


def unrecorded_values(source: WeightsSource, preprocess: Mapping[str, Any], *, quick_gelu: bool) -> str | None:
    """A note on values that a file does not record, if tags of its architecture disagree on them.

    Args:
        source: from `find_weights`.
        preprocess: the values in use.
        quick_gelu: whether QuickGELU is in use.
    """
    if source.is_recorded:
        return None
    used = [_plain(preprocess[key]) for key in PREPROCESS_KEYS]
    others = []
    for tag in open_clip.list_pretrained_tags_by_model(source.arch):
        known = open_clip.get_pretrained_cfg(source.arch, tag)
        needs_quick_gelu = known.get("quick_gelu", False)
        has_other_values = [_plain(known[key]) for key in PREPROCESS_KEYS] != used
        # With --quick-gelu, the weights are not those of a tag without it.
        if has_other_values if needs_quick_gelu == quick_gelu else needs_quick_gelu:
            others.append(tag)
    if not others:
        return None
    return (
        f"{source.name} does not record its preprocessing and activation; using mean {used[0]}, std {used[1]} and "
        f"{'QuickGELU' if quick_gelu else 'GELU'}. Other weights of {source.arch} need other values, such as "
        f"{', '.join(others[:3])}: name the tag of these weights with --preprocess-of."
    )


def _from_tag_or_file(arch: str, pretrained: str, preprocess_of: str | None) -> WeightsSource:
    known = open_clip.get_pretrained_cfg(arch, pretrained)
    if known:
        if preprocess_of is not None:
            msg = f"The tag {pretrained!r} has its own preprocessing; --preprocess-of is for local files."
            raise WeightsError(msg)
        path = _fetch(known["hf_hub"].rstrip("/"), WEIGHTS_FILES, f"the weights {pretrained!r} of {arch}")
        return WeightsSource(arch, pretrained, path, known.get("quick_gelu", False), _preprocess(known))
    path = Path(pretrained)
    if path.is_file():
        check_kind(path)
        if preprocess_of is None:
            return WeightsSource(arch, path.name, path, is_recorded=False)
        values = open_clip.get_pretrained_cfg(arch, preprocess_of)
        if not values:
            raise WeightsError(_unknown_tag(arch, preprocess_of))
        return WeightsSource(arch, path.name, path, values.get("quick_gelu", False), _preprocess(values))
    if pretrained.startswith((LOCAL_DIR, HF_HUB)):
        msg = f"{pretrained} contains an architecture, too: pass it as the backbone, without other weights."
    elif path.is_dir():
        msg = f"{pretrained} is a folder: pass its weights file, or use {LOCAL_DIR}{pretrained} as the backbone."
    elif pretrained.endswith(WEIGHT_SUFFIXES) or "/" in pretrained:
        msg = f"No weights file at {pretrained!r} for backbone {arch!r}. Check the path."
    else:
        msg = _unknown_tag(arch, pretrained)
    raise WeightsError(msg)


def _from_folder(name: str) -> WeightsSource:
    """The weights of `local-dir:` or `hf-hub:`, with the built-in architecture that its configuration describes."""
    if name.startswith(HF_HUB):
        repository = name.removeprefix(HF_HUB)
        config_path = _fetch(repository, [HF_CONFIG_NAME], f"the configuration of {repository}")
        path: Path | None = _fetch(repository, WEIGHTS_FILES, f"the weights of {repository}")
        source_name = name
    else:
        folder = Path(name.removeprefix(LOCAL_DIR)).resolve()
        config_path = folder / HF_CONFIG_NAME
        candidates = [folder / file for file in WEIGHTS_FILES] + sorted(folder.glob("*.safetensors"))
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        source_name = folder.name
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        model = config["model_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = (
            f"{name} needs {HF_CONFIG_NAME} with 'model_cfg', as open_clip writes it: {error}. "
            "Or pass the weights file."
        )
        raise WeightsError(msg) from error
    if path is None:
        msg = f"{name} contains no weights: expected {', '.join(WEIGHTS_FILES)}."
        raise WeightsError(msg)
    check_kind(path)
    register_architectures()
    plain = {key: value for key, value in model.items() if key != "quick_gelu"}
    arch = next((known for known in open_clip.list_models() if open_clip.get_model_config(known) == plain), None)
    if arch is None:
        msg = f"The 'model_cfg' of {name} is none of open_clip's architectures, and others are not supported."
        raise WeightsError(msg)
    return WeightsSource(
        arch, source_name, path, model.get("quick_gelu", False), _preprocess(config.get("preprocess_cfg", {}))
    )


def _fetch(repository: str, names: Sequence[str], content: str) -> Path:
    """The first of these files that a hub repository has, from the cache or downloaded.

    Raises:
        WeightsError: the repository has none, or the hub cannot be reached within a few seconds.
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    for name in names:
        try:
            if _has_file(repository, name):
                return Path(huggingface_hub.hf_hub_download(repository, name))
        except Exception as error:  # errors of the hub and of its HTTP library
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            msg = (
                f"Cannot download {content} from the Hugging Face Hub: {reason.rstrip('.')}. Without a network, pass a "
                f"local file, or run `hf download {repository} --include 'open_clip*' --local-dir weights` on a "
                f"connected machine, copy the folder, and use {LOCAL_DIR}weights as the backbone."
            )
            raise WeightsError(msg) from error
    msg = f"The repository {repository} has no {' or '.join(names)}. Choose one that open_clip can load."
    raise WeightsError(msg)


def _has_file(repository: str, name: str) -> bool:
    """Whether a repository has a file.

    Differs from huggingface_hub's own functions: without a network, this fails after `HUB_TIMEOUT_S`, not minutes.
    """
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, name), timeout=HUB_TIMEOUT_S)
    except EntryNotFoundError:
        return False
    return True


def _unknown_tag(arch: str, tag: str) -> str:
    elsewhere = open_clip.list_pretrained_models_by_tag(tag)[:3]
    advice = f" It is a tag of {', '.join(elsewhere)}." if elsewhere else ""
    advice = advice or did_you_mean(tag, open_clip.list_pretrained_tags_by_model(arch))
    return f"{arch} has no weights {tag!r}, and there is no such file.{advice} Tags: {_tags(arch)}."


def known_tag(arch: str, name: str | None) -> str | None:
    """A manifest's name of weights if it is an open_clip tag of the architecture, else None."""
    register_architectures()
    return name if name in open_clip.list_pretrained_tags_by_model(arch) else None


def _tags(arch: str) -> str:
    return ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none known for it"


def _preprocess(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(values[key]) for key in PREPROCESS_KEYS if values.get(key) is not None}


def _plain(value: Any) -> Any:  # noqa: ANN401  JSON values
    return list(value) if isinstance(value, tuple) else value
