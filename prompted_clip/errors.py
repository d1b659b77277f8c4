"""Errors of the model.

PromptedClipError
├── DeviceError          the device is not available, or not supported by the installed torch
├── BackendError         the backend that runs the image tower is not installed or does not support the machine
├── WeightsError         the backbone cannot be loaded
├── StackMismatchError   a bundle or stack was made for another backbone
├── TextTooLongError     a class name and its prompts do not fit the text tower
└── ExportError          a domain cannot be written in another runtime's format
"""

import difflib
from collections.abc import Iterable


class PromptedClipError(Exception):
    """Root of the errors raised by `prompted_clip`; `code` is stable and machine readable."""

    code = "model_error"


class DeviceError(PromptedClipError):
    """CUDA is not available, or torch has no code for the GPU."""

    code = "device_unavailable"


class BackendError(PromptedClipError):
    """A backend is not installed, or does not support this device, processor or dtype."""

    code = "backend_unavailable"


class WeightsError(PromptedClipError):
    """The backbone's architecture or weights are missing, unsupported or do not fit together."""

    code = "weights_invalid"


class StackMismatchError(PromptedClipError):
    """A bundle cannot run on the loaded backbone."""

    code = "stack_mismatch"


class TextTooLongError(PromptedClipError):
    """SOS + prompts + text + EOT need more positions than the text tower has."""

    code = "text_too_long"


class ExportError(PromptedClipError):
    """A domain cannot be written in another runtime's format, or the written model differs."""

    code = "export_failed"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence with the known names most similar to `word`, after a space; empty if there are none."""
    names = {name.lower(): name for name in known}
    near = [names[name] for name in difflib.get_close_matches(word.lower(), names, n=3)]
    return f" Did you mean {' or '.join(near)}?" if near else ""
