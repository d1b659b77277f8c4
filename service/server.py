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
from types import FrameType
from typing import Final

import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from prompt_store.store import Store
from prompted_clip.backbone import load_backbone
from prompted_clip.model import PromptedClip
from service.app import create_app
from service.auth import Key, read_keys
from service.errors import SettingsError
from service.runtime import Runtime
from service.settings import Settings

logger = logging.getLogger(__name__)

DEVICE_LOST_STATUS: Final = 70
BFLOAT16_CAPABILITY: Final = (8, 0)
"""The first CUDA compute capability with bfloat16 arithmetic."""
MAX_HEADER_BYTES: Final = 16 * 1024
KEEP_ALIVE_S: Final = 5
HEAD_WITHIN_S: Final = 10.0


class PatientProtocol(H11Protocol):
    """Uvicorn's protocol with a deadline for the head of every request.

    Uvicorn waits for ever for a client that says nothing or sends its headers a byte at a time; each one holds a
    connection. The time for bodies is bounded in `middleware.py`.
    """

    _hang_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock with the connection."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a request is there."""
        super().data_received(data)
        if self._is_answering():
            self._stop_clock()

    def on_response_complete(self) -> None:
        """Start it again for the next request on this connection."""
        super().on_response_complete()
        if not self._is_answering():
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _expect_head(self) -> None:
        self._stop_clock()
        self._hang_up = self.loop.call_later(HEAD_WITHIN_S, self.transport.close)

    def _stop_clock(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None


class GracefulServer(uvicorn.Server):
    """Uvicorn's server with a drain before the stop, and exit status 0 after it.

    Args:
        config: uvicorn's own settings.
        runtime: told to drain, asked whether the device still lives.
        on_started: called once the socket accepts.
    """

    def __init__(self, config: uvicorn.Config, runtime: Runtime, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._runtime = runtime
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
        is_first = not self._runtime.is_draining
        self._runtime.is_draining = True
        if self._loop is not None and is_first and sig == signal.SIGTERM and frame is not None:
            logger.info("server.draining", extra={"for_s": self._runtime.settings.drain_delay_s})
            self._loop.call_soon_threadsafe(
                self._loop.call_later, self._runtime.settings.drain_delay_s, self._stop_listening
            )
            return
        self.force_exit = self.should_exit
        self.should_exit = True

    def _stop_listening(self) -> None:
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn's tick, ten times a second; also notices a device that will not come back."""
        if self._runtime.engine.is_lost or self._runtime.engine.is_stuck:
            logger.critical("server.device_lost")
            await asyncio.sleep(1)
            # The driver can hang in an orderly shutdown; a supervisor starts a new process.
            os._exit(DEVICE_LOST_STATUS)
        return await super().on_tick(counter)


def chosen_device(settings: Settings) -> tuple[str, torch.dtype]:
    """Device and weight type that `auto` stands for on this machine.

    Raises:
        SettingsError: CUDA is asked for and not there.
    """
    has_cuda = torch.cuda.is_available()
    device = ("cuda" if has_cuda else "cpu") if settings.device == "auto" else settings.device
    if device.startswith("cuda") and not has_cuda:
        raise SettingsError(f"Device {device} was asked for, but torch finds no CUDA device. Use --device cpu.")
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return device, kinds.get(settings.dtype) or (torch.bfloat16 if _computes_bfloat16(device) else torch.float32)


def _computes_bfloat16(device: str) -> bool:
    """Whether bfloat16 is quick there; older cards only emulate it, slower than float32."""
    return device.startswith("cuda") and torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY


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
    if settings.n_torch_threads:
        torch.set_num_threads(settings.n_torch_threads)
    device, dtype = chosen_device(settings)
    backbone = load_backbone(
        settings.backbone,
        pretrained=settings.pretrained,
        quick_gelu=settings.quick_gelu,
        random_seed=settings.random_weights,
        device=device,
        dtype=dtype,
    )
    return PromptedClip(
        backbone, max_text_rows=settings.max_text_rows, max_conditional_classes=settings.max_conditional_classes
    )


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket.

    Raises:
        SettingsError: the address is not ours or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(f"Cannot listen on {host} port {port}: {error.strerror}.", code="cannot_listen") from error
    # Python notes no protocol for this socket, connections inherit that, and asyncio switches Nagle's algorithm off
    # only where it reads TCP: the second packet of an answer would wait 40 ms. Opened by number, the protocol is known.
    return socket.socket(fileno=listener.detach())


def run(settings: Settings, store: Store, announce: Callable[[Runtime, str], None]) -> int:
    """Serve until told to stop.

    Args:
        settings: what to run with.
        store: opened store.
        announce: called with the runtime and the address once requests are accepted.

    Returns:
        The process's exit status.

    Raises:
        SettingsError, WeightsError: it cannot start like this.
    """
    keys = needed_keys(settings)
    with listen(settings.host, settings.port) as listener:
        app = create_app(settings, load_model(settings), store, keys)
        runtime: Runtime = app.state.runtime
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        server = GracefulServer(config, runtime, lambda: announce(runtime, address))
        server.run(sockets=[listener])
    if runtime.engine.is_busy:
        # Python waits for its threads before it ends, and this one may never come back.
        logger.critical("server.device_left_behind")
        logging.shutdown()
        os._exit(0 if runtime.is_drained else DEVICE_LOST_STATUS)
    return 0 if server.started else 1
