"""The HTTP/1.1 protocol with time limits: for request heads, the rest of bodies, and clients that do not read.

`body.py` bounds bodies until the response, this module the rest of a body after it.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from collections.abc import Callable
from typing import Any, Final

from service.http.body import RATE_WINDOW_S
from service.http.connections.strict import StrictHttpProtocol
from service.http.middleware.early_refusal import EarlyRefusal

HEAD_TIMEOUT_S: Final = 10.0
LAST_HEAD_TIMEOUT_S: Final = 1.0
"""The same for a connection without a request when the server stops."""


class TimeoutHttpProtocol(StrictHttpProtocol):
    """Closes connections whose next request head is late, or whose client does not read; uvicorn would wait forever.

    Args:
        max_body_s: maximum time for the rest of a body after the response.
        min_body_rate: its minimum rate, and that of a response that the client does not read, in bytes per second.
        refusal: rejects requests under overload before they are parsed.
    """

    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _is_stopping = False
    _n_received, _rest_end_s = 0, 0.0

    def __init__(
        self,
        *args: Any,  # noqa: ANN401  uvicorn's own
        max_body_s: float,
        min_body_rate: int,
        refusal: EarlyRefusal | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self._refusal = refusal
        self._max_body_s, self._min_window_bytes = max_body_s, min_body_rate * RATE_WINDOW_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer."""
        super().connection_made(transport)
        self._start_timer(HEAD_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        """Count bytes, and parse them unless they are a request that is refused early."""
        self._n_received += len(data)
        refused = None
        if self._refusal and self._is_idle() and not self._is_stopping:
            client = self.client[0] if self.client else ""
            refused = self._refusal.respond(data, self.server_state.default_headers, client)
        if not refused:
            super().data_received(data)
            if self.transport.is_closing():
                self._start_timer(HEAD_TIMEOUT_S)
            elif self._is_answering():
                self._stop_timer()
            return
        response, must_close = refused
        self.transport.write(response)
        if must_close:
            self.transport.close()
        else:
            self._unset_keepalive_if_required()
            self._start_timer(HEAD_TIMEOUT_S)

    def on_headers_complete(self) -> None:
        """Start the request; it is the last one if the server stops."""
        super().on_headers_complete()
        if self._is_stopping and self._is_in_body:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """End a request; the next head is due if the response has been sent."""
        super().on_message_complete()
        if not self._is_answering():
            self._start_timer(HEAD_TIMEOUT_S)

    def on_response_complete(self) -> None:
        """Start the timer for the rest of the body, or for the next request."""
        super().on_response_complete()
        if self._is_answering():
            return
        if self._is_in_body and not self._is_invalid:
            self._unset_keepalive_if_required()
            self._rest_end_s = self.loop.time() + self._max_body_s
            self._await_rest()
        else:
            self._start_timer(HEAD_TIMEOUT_S)

    def pause_writing(self) -> None:
        """Start the timer for a client that does not read its response."""
        super().pause_writing()
        self._await_reader(self._n_unread())

    def resume_writing(self) -> None:
        """Stop that timer."""
        super().resume_writing()
        self._stop_write_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Finish the current request; a connection without one gets a second to send it, as closing would reset it.

        If a response has started without `Connection: close`, the connection stays open for another request.
        """
        self._is_stopping = True
        if not self._is_answering():
            self._start_timer(LAST_HEAD_TIMEOUT_S)
        elif not self.cycle.response_started:
            super().shutdown()

    def _await_rest(self) -> None:
        """Give the rest of the body another window."""
        self._n_received = 0
        left_s = self._rest_end_s - self.loop.time()
        self._start_timer(min(RATE_WINDOW_S, left_s), self._end_window if left_s > RATE_WINDOW_S else None)

    def _end_window(self) -> None:
        if self._n_received < self._min_window_bytes:
            self.transport.close()
        else:
            self._await_rest()

    def _n_unread(self) -> int:
        """Bytes of responses that the client has not received; the kernel's buffer alone may hold megabytes."""
        in_kernel = fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)

    def _await_reader(self, n_unread: int) -> None:
        """Drop the connection unless the client receives enough of `n_unread` bytes in the next window."""

        def end_window() -> None:
            n_left = self._n_unread()
            if n_unread - n_left < self._min_window_bytes:
                self.transport.abort()  # `close` would wait for the client
            else:
                self._await_reader(n_left)

        self._write_timer = self.loop.call_later(RATE_WINDOW_S, end_window)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _close(self) -> None:
        """Close the connection, without waiting for a client that does not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _start_timer(self, timeout_s: float, then: Callable[[], None] | None = None) -> None:
        """Start or restart the timer, which calls `then`, or closes the connection."""
        self._stop_timer()
        self._timer = self.loop.call_later(timeout_s, then or self._close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
