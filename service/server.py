"""A start of `caspl serve` from settings to a listening socket, and its graceful end.

On SIGTERM the process says so in `/readyz` and keeps serving for a moment, so that whoever routes to it can look away;
then it stops listening, answers what is in flight and exits with 0. SIGINT (Ctrl+C) or a second signal skips the
moment, one more drops what is in flight. A device that hangs holds up the end for `drain_timeout_s`, not for ever.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Final

import torch
import uvicorn

from prompt_store.store import Store
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.fused_tower import FusedImageTower
from prompted_clip.graphs import GraphedTower
from prompted_clip.model import PromptedClip
from prompted_clip.precision import fastest_dtype, is_heavy, is_packed_faster
from prompted_clip.vision import ImageTower
from service.app import build, create_app
from service.errors import SettingsError
from service.http.auth import Key, KeyRing, read_keys
from service.http.context import ServiceContext
from service.http.server import DrainingServer, address_of, http_config, listen
from service.images.gpu import nvimgcodec
from service.process import tune_interpreter, usable_cores
from service.settings import Settings
from service.workers import device_process

logger = logging.getLogger(__name__)

DEVICE_LOST_STATUS: Final = 70


class GracefulServer(DrainingServer):
    """Uvicorn's server with a drain before the stop, and exit status 0 after it.

    Args:
        config: uvicorn's own settings.
        context: told to drain, asked whether the device still lives.
        on_started: called once the socket accepts.
    """

    def __init__(self, config: uvicorn.Config, context: ServiceContext, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._context = context
        self._on_started = on_started
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the domains, open the socket, say so."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started and not self.should_exit:
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first SIGTERM, stop on SIGINT or the second signal, drop everything on the one after that.

        Differs from uvicorn: the signal is not raised again afterwards, so the exit status is 0.
        """
        is_first = not self._context.is_draining
        self._context.is_draining = True
        if self._loop is not None and is_first and sig == signal.SIGTERM and frame is not None:
            logger.info("server.draining", extra={"for_s": self._context.settings.drain_delay_s})
            self._loop.call_soon_threadsafe(
                self._loop.call_later, self._context.settings.drain_delay_s, self._stop_listening
            )
            return
        self.force_exit = self.should_exit
        self.should_exit = True

    def _stop_listening(self) -> None:
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn's tick, ten times a second; also notices a device that will not come back."""
        await leave_if_lost(self._context)
        return await super().on_tick(counter)


async def leave_if_lost(context: ServiceContext) -> None:
    """End the process, after a second for answers that say so, when the device will not answer in it again."""
    if context.engine.is_lost or context.engine.is_stuck:
        logger.critical("server.device_lost")
        await asyncio.sleep(1)
        # The driver can hang in an orderly shutdown; a supervisor starts a new process.
        os._exit(DEVICE_LOST_STATUS)


def chosen_device(settings: Settings) -> str:
    """The device that `auto` stands for on this machine.

    Raises:
        SettingsError: CUDA is asked for and not there.
    """
    has_cuda = torch.cuda.is_available()
    if settings.device == "auto":
        return "cuda" if has_cuda else "cpu"
    if settings.device.startswith("cuda") and not has_cuda:
        raise SettingsError(
            f"Device {settings.device} was asked for, but torch finds no CUDA device. Use --device cpu."
        )
    return settings.device


def on_this_device(settings: Settings) -> Settings:
    """The same settings, with limits that suit a GPU where there is one and none were asked for.

    Raises:
        SettingsError: CUDA is asked for and not there.
    """
    device = chosen_device(settings)
    if not device.startswith("cuda"):
        return settings
    return settings.for_gpu(torch.cuda.get_device_properties(device).multi_processor_count)


def chosen_dtype(settings: Settings, device: str) -> torch.dtype:
    """The weights' type that `auto` stands for on a device."""
    if settings.dtype == "auto":
        return fastest_dtype(settings.backbone, device)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def refuse_decoding_on_the_gpu_without_one() -> None:
    """Say at once what `preprocess=gpu` lacks.

    Raises:
        SettingsError: there is no CUDA device, or nvImageCodec is not installed.
    """
    if not torch.cuda.is_available():
        raise SettingsError("preprocess gpu needs a CUDA device, and torch finds none. Choose fast.")
    nvimgcodec()


def image_tower(backbone: Backbone, settings: Settings) -> ImageTower:
    """The fastest form of the image tower there is for this device."""
    tower = FusedImageTower(backbone, packed=is_packed_faster(backbone.arch, backbone.device, backbone.dtype))
    if backbone.device.type == "cuda":
        return GraphedTower(tower, backbone, max_rows=settings.max_batch_rows)
    return tower


def threads_of(arch: str, device: str) -> int:
    """On how many threads a forward runs: all cores, or one where its steps are too short to share (decisions/0019)."""
    is_on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if is_on_cpu and not is_heavy(arch):
        return 1
    return min(torch.get_num_threads(), usable_cores())


def batches_at_once(backbone: Backbone, settings: Settings) -> int:
    """One per core where a core is worth it (decisions/0012), but no more than leave each a batch of two images."""
    if backbone.device.type != "cpu" or not is_heavy(backbone.arch):
        return 1
    return max(1, min(torch.get_num_threads(), settings.max_batch_rows // 2))


def needed_keys(settings: Settings) -> tuple[Key, ...]:
    """The keys of the key file; only loopback may go without.

    Raises:
        SettingsError: another address and no keys, or a key file that is unusable or empty.
    """
    if settings.keys_file:
        if keys := read_keys(settings.keys_file):
            return keys
        raise SettingsError(
            f"The key file {settings.keys_file} holds no keys, and without keys everyone may do everything. Make one "
            f"with `caspl keys new {settings.keys_file} --scope classify`, or leave --keys-file out.",
            code="keys_needed",
        )
    if not settings.is_loopback:
        raise SettingsError(
            f"Listening on {settings.host} lets other machines in, so it needs API keys: make one with "
            "`caspl keys new keys.json --scope classify` and start with --keys-file keys.json.",
            code="keys_needed",
        )
    return ()


def load_model(settings: Settings) -> PromptedClip:
    """Load the backbone the settings name.

    Raises:
        WeightsError: unknown architecture or no weights.
        SettingsError: CUDA is asked for and not there.
    """
    torch.set_num_threads(settings.n_torch_threads or threads_of(settings.backbone, settings.device))
    # Every thread that computes in parallel has a team of its own, which goes when the thread ends. With more in all
    # teams than there are cores none waits awake (`service/process.py`): only the device's thread is to have one.
    with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
        return thread.submit(_load_model, settings).result()


def _load_model(settings: Settings) -> PromptedClip:
    if settings.preprocess == "gpu":
        refuse_decoding_on_the_gpu_without_one()
    device = chosen_device(settings)
    backbone = load_backbone(
        settings.backbone,
        pretrained=settings.pretrained,
        quick_gelu=settings.quick_gelu,
        random_seed=settings.random_weights,
        device=device,
        dtype=chosen_dtype(settings, device),
    )
    num_streams = batches_at_once(backbone, settings)
    return PromptedClip(
        backbone,
        image_tower=image_tower(backbone, settings),
        max_text_rows=max(1, settings.max_text_rows // num_streams),
        max_conditional_classes=settings.max_conditional_classes,
        bank_slots=settings.bank_slots,
        num_streams=num_streams,
    )


def run(settings: Settings, store: Store, announce: Callable[[ServiceContext, str], None]) -> int:
    """Serve until told to stop.

    Args:
        settings: what to run with.
        store: opened store.
        announce: called with the context and the address once requests are accepted.

    Returns:
        The process's exit status.

    Raises:
        SettingsError, WeightsError: it cannot start like this.
    """
    keys = needed_keys(settings)
    settings = on_this_device(settings)
    with listen(settings.host, settings.port) as listener:
        address = address_of(listener)
        model = load_model(settings)

        def started() -> None:
            tune_interpreter()
            announce(context, address)

        if settings.web_workers:
            context = build(settings, model, store, KeyRing(keys))
            asyncio.run(device_process.serve(context, keys, listener, leave_if_lost, started))
            has_started = True
        else:
            app = create_app(settings, model, store, keys)
            context = app.state.context
            server = GracefulServer(http_config(app, settings), context, started)
            server.run(sockets=[listener])
            has_started = server.started
    if context.engine.is_busy:
        # Python waits for its threads before it ends, and this one may never come back.
        logger.critical("server.device_left_behind")
        logging.shutdown()
        os._exit(0 if context.is_drained else DEVICE_LOST_STATUS)
    return 0 if has_started else 1
