"""What a process that talks HTTP to clients consists of, whether or not it also has the device.

The middleware and the classify routes are handed a `Front` and know no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from service.answering import Answerer
from service.http.auth import KeyRing
from service.images.decoder import Decoder, ImageLimits
from service.images.preprocessing import preprocessing
from service.observability.metrics import Metrics
from service.settings import Settings


@dataclass(eq=False, kw_only=True)
class Front:
    """The near side of a request: keys, limits, decoding, and whom to ask for answers."""

    settings: Settings
    metrics: Metrics
    keys: KeyRing
    decoder: Decoder
    answerer: Answerer
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


def front_of(request: Request) -> Front:
    """What the application answers with.

    Raises:
        TypeError: it was built without.
    """
    runtime = request.app.state.runtime
    if not isinstance(runtime, Front):
        raise TypeError("the application carries no runtime; build it with create_app")
    return runtime


async def _of_request(request: Request) -> Front:  # FastAPI gives a plain function a thread
    return front_of(request)


Serving = Annotated[Front, Depends(_of_request)]
"""What a route declares to be handed the front."""


def actor_of(request: Request) -> str:
    """The id of the key a request came with; empty when none was needed."""
    return str(request.scope.get("caspl.actor", ""))
