"""The parts of a process that serves HTTP, with or without the device: all that middleware and classify routes know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request

from service.http.auth import KeyRing
from service.images.decoder import Decoder, ImageLimits
from service.images.preprocessing import preprocessing
from service.inference import InferenceBackend
from service.observability.metrics import Metrics
from service.settings import Settings


@dataclass(eq=False, kw_only=True)
class HttpContext:
    """Settings, keys, decoder and inference backend of one process."""

    settings: Settings
    metrics: Metrics
    keys: KeyRing
    decoder: Decoder
    backend: InferenceBackend
    is_draining: bool = False


def build_decoder(settings: Settings, image_size: int, preprocess: dict[str, Any], *, device: str = "cpu") -> Decoder:
    """The decoder of one process, as the settings say.

    Args:
        settings: limits and threads.
        image_size: side of the backbone's square input, in pixels.
        preprocess: the backbone's preprocessing values.
        device: of the backbone, where it is in this process.

    Raises:
        SettingsError: a way of decoding that needs a package which is not there.
    """
    limits = ImageLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_side_px=settings.max_image_side_px,
        max_aspect=settings.max_image_aspect,
        max_scans=settings.max_image_scans,
    )
    # Threads whose file is decoded on the device only wait; the more do, the larger are its batches.
    n_waiting_threads = min(64, settings.max_decoding_images) if settings.preprocess == "gpu" else 0
    return Decoder(
        limits,
        preprocessing(settings.preprocess, image_size, preprocess, device=device),
        n_threads=settings.n_decode_threads or n_waiting_threads,
        max_waiting=settings.max_decoding_images,
    )


def context_of(request: Request) -> HttpContext:
    """What the application of a request was built with.

    Raises:
        TypeError: it was built without.
    """
    context = request.app.state.runtime
    if not isinstance(context, HttpContext):
        raise TypeError("the application carries no runtime; build it with create_app")
    return context


def actor_of(request: Request) -> str:
    """The id of the key a request came with; empty when none was needed."""
    return str(request.scope.get("caspl.actor", ""))
