"""Messages over one end of a socket pair: framed by length, checked while they are read, ended by end-of-file.

That the other process died is noticed by its end being closed, at once and without a heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import msgspec

Incoming = TypeVar("Incoming")

logger = logging.getLogger(__name__)

LENGTH: Final = struct.Struct("<I")
_ENCODER: Final = msgspec.msgpack.Encoder()


class Channel(asyncio.Protocol, Generic[Incoming]):
    """One end; messages that are sent in one go of the event loop leave as one piece.

    Args:
        kinds: the messages that may arrive, as a union type.
        max_bytes: largest message that is read; a larger or malformed one ends the channel.
        on_message: called with every message, in order; must not raise.
        on_lost: called once when the other end is gone.
    """

    def __init__(
        self,
        kinds: Any,  # noqa: ANN401  a union of types has no type of its own
        *,
        max_bytes: int,
        on_message: Callable[[Incoming], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(kinds)
        self._max_bytes = max_bytes
        self._on_message = on_message
        self._on_lost = on_lost
        self._arrived = bytearray()
        self._leaving: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    async def open(self, end: socket.socket) -> None:
        """Begin to talk through `end`, which belongs to the channel from now on."""
        await self._loop.create_unix_connection(lambda: self, sock=end)

    @property
    def is_open(self) -> bool:
        """Whether the other end is there."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: msgspec.Struct) -> None:
        """Send at the end of this go of the event loop; silently in vain when the other end is gone."""
        body = _ENCODER.encode(message)
        if not self._leaving:
            self._loop.call_soon(self._flush)
        self._leaving += (LENGTH.pack(len(body)), body)

    def close(self) -> None:
        """Send what is waiting, then end the channel."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand over every message that is complete."""
        arrived = self._arrived
        arrived += data
        begin = 0
        while len(arrived) - begin >= LENGTH.size:
            (n_bytes,) = LENGTH.unpack_from(arrived, begin)
            end = begin + LENGTH.size + n_bytes
            if n_bytes > self._max_bytes:
                self._refuse(f"a message of {n_bytes} bytes")
                return
            if len(arrived) < end:
                break
            with memoryview(arrived) as view:
                try:
                    message = self._decoder.decode(view[begin + LENGTH.size : end])
                except msgspec.MsgspecError as error:
                    self._refuse(str(error))
                    return
            begin = end
            self._on_message(message)
        del arrived[:begin]

    def connection_lost(self, _: Exception | None) -> None:
        """Tell the owner."""
        self._on_lost()

    def _flush(self) -> None:
        if self._leaving and self.is_open and self._transport is not None:
            self._transport.write(b"".join(self._leaving))
        self._leaving.clear()

    def _refuse(self, reason: str) -> None:
        """End the channel: whoever sends this is broken or taken over."""
        logger.error("channel.refused", extra={"reason": reason})
        self._arrived = bytearray()
        if self._transport is not None:
            self._transport.abort()
