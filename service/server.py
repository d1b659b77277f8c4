"""`caspl serve`, from settings to a listening socket, and its graceful shutdown.

On SIGTERM `/readyz` answers 503 and the process goes on serving for `drain_delay_s`, so that load balancers can react.
Then it stops listening, finishes open requests and exits with status 0. SIGINT (Ctrl+C) or a second signal
skips the delay, a third drops open requests. A hung device delays the exit by `drain_timeout_s` at most.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import torch
import uvicorn

from prompt_store.store import Store
from service.access.key_file import Key, read_keys
from service.access.keys import KeyRing
from service.access.signing import load_signing
from service.app import build, create_app
from service.engine.loading import load_model, with_gpu_limits
from service.errors import SettingsError
from service.http.context import ServiceContext
from service.http.server import DrainingServer, address_of, http_config, listen
from service.images.gpu import nvimgcodec
from service.observability.watchdog import STATUS
from service.process import end_process, tune_interpreter
from service.settings import Settings
from service.sources.follower import followed_addresses
from service.workers import device_process

logger = logging.getLogger(__name__)


class GracefulServer(DrainingServer):
    """A server that drains before it stops, and exits with status 0."""

    def __init__(self, config: uvicorn.Config, context: ServiceContext, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._context = context
        self._on_started = on_started
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the domains, then accept connections."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started and not self.should_exit:
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first SIGTERM, stop on SIGINT or the second signal, drop open requests on the next one.

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


def require_gpu_decoding() -> None:
    """Check the requirements of `preprocess=gpu`.

    Raises:
        SettingsError: no CUDA device, or nvImageCodec is not installed.
    """
    if not torch.cuda.is_available():
        raise SettingsError("preprocess gpu requires a CUDA device, but torch finds none. Use preprocess fast.")
    nvimgcodec()


def load_keys(settings: Settings) -> tuple[Key, ...]:
    """The keys of the key file; required unless the service listens on loopback.

    Raises:
        SettingsError: no keys for another address, or an unusable or empty key file.
    """
    if settings.keys_file:
        if keys := read_keys(settings.keys_file):
            return keys
        raise SettingsError(
            f"The key file {settings.keys_file} contains no keys. Create one with "
            f"`caspl keys new {settings.keys_file} --scope classify`, or omit --keys-file.",
            code="keys_needed",
        )
    if not settings.is_loopback:
        raise SettingsError(
            f"{settings.host} is not a loopback address, so API keys are required. Create one with "
            "`caspl keys new keys.json --scope classify` and start with --keys-file keys.json.",
            code="keys_needed",
        )
    return ()


def run(settings: Settings, store: Store, announce: Callable[[ServiceContext, str], None]) -> int:
    """Serve until a signal stops the process; returns its exit status.

    `announce` is called with the context and the address once connections are accepted.

    Raises:
        SettingsError, WeightsError: the process cannot start with these settings.
    """
    keys = load_keys(settings)
    followed_addresses(settings)  # this and the keys fail before the model is loaded
    load_signing(settings)
    settings = with_gpu_limits(settings)
    if settings.preprocess == "gpu":
        require_gpu_decoding()
    with listen(settings.host, settings.port) as listener:
        address = address_of(listener)
        model = load_model(settings)

        def started() -> None:
            tune_interpreter()
            announce(context, address)

        if settings.web_workers:
            context = build(settings, model, store, KeyRing(keys, settings.keys_file))
            context.watchdog.start(context.failed_because)
            asyncio.run(device_process.serve(context, keys, listener, started))
            has_started = True
        else:
            app = create_app(settings, model, store, keys)
            context = app.state.context
            context.watchdog.start(context.failed_because)
            server = GracefulServer(http_config(app, settings, context=context), context, started)
            server.run(sockets=[listener])
            has_started = server.started
    if context.engine.activity.is_busy:
        # Python joins its threads at exit, and the device thread may hang forever.
        logger.critical("device.abandoned")
        end_process(0 if context.is_drained else STATUS)
    return 0 if has_started else 1
