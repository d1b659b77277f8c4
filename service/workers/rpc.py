"""RPC between two processes over a socket pair, which no other process can open and which closes when a process exits.

Messages are MessagePack, validated against the methods' annotations; they cannot name classes or code.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, Final, Literal, TypeVar, get_type_hints

from msgspec import MsgspecError, Raw, Struct
from msgspec.msgpack import Decoder, Encoder

from service.errors import DeviceLostError, ServiceError
from service.http.problems import INTERNAL_DETAIL, TABLE

T = TypeVar("T")
Method = Callable[..., Coroutine[Any, Any, Any]]
Callback = Callable[[], None]

logger = logging.getLogger(__name__)

LENGTH_BYTES: Final = 4
LOST: Final = "The device process has exited and the service is restarting. Retry later."
ERRORS: Final[Mapping[str, type[Exception]]] = {kind.__name__: kind for kind in TABLE}


class WireError(Struct, frozen=True):
    """An exception: class name, message and attributes."""

    kind: str
    message: str
    facts: dict[str, Any]


def to_wire(error: Any) -> WireError:  # noqa: ANN401  msgspec passes every value that it cannot encode
    """Serialize an error. One without a row in the problem table is a bug: it is logged, and its text is not sent."""
    kind = next((kind for kind in type(error).__mro__ if ERRORS.get(kind.__name__) is kind), None)
    if kind is None:
        logger.error("rpc.failed", exc_info=error)
        return WireError(ServiceError.__name__, INTERNAL_DETAIL, {"code": "internal", "extra": {}})
    return WireError(kind.__name__, str(error), vars(error))


def from_wire(sent: WireError) -> Exception:
    """Rebuild the error without calling its constructor: same class, message and attributes."""
    kind = ERRORS.get(sent.kind, ServiceError)
    error = kind.__new__(kind, sent.message)
    vars(error).update(sent.facts)
    return error


_encode: Final = Encoder(enc_hook=to_wire).encode
_decoder: Callable[[Any], Decoder[Any]] = lru_cache(maxsize=None)(Decoder)


class Frame(Struct, frozen=True, array_like=True):
    """One message: `body` is arguments, a result or a `WireError`; `number` matches reply to call, 0 means no reply."""

    kind: Literal["call", "cancel", "result", "error"]
    number: int
    method: str = ""
    body: Raw = Raw(_encode(None))


class Rpc(asyncio.Protocol):
    """One end of a connection: serves this process's methods and calls those of the other, on one event loop.

    Methods are coroutine functions with positional, annotated parameters. A message that is malformed, or larger than
    `max_bytes`, ends the connection; `lost` is done when it has ended.
    """

    _transport: asyncio.Transport

    def __init__(self, methods: Iterable[Method], *, max_bytes: int = 2**31) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._methods = {method.__name__: (method, _arguments(method)) for method in methods}
        self._max_bytes = max_bytes
        self._numbers = itertools.count(1)
        self._pending: dict[int, tuple[asyncio.Future[Raw], Callback]] = {}
        self._running: dict[int, asyncio.Future[Any]] = {}
        self._received = bytearray()
        self._unsent: list[bytes] = []

    async def open(self, end: socket.socket) -> None:
        """Take ownership of `end` and start."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    def close(self) -> None:
        """Flush, then close the connection."""
        self._flush()
        self._transport.close()

    def notify(self, method: str, *args: object) -> None:
        """Call a method of the other process without a reply; no effect once that process has exited."""
        self._send(Frame("call", 0, method, Raw(_encode(args))))

    async def call(self, method: str, *args: object, returns: type[T], on_done: Callback = lambda: None) -> T:
        """Call a method of the other process and raise what it raises; cancelling this call cancels the method.

        `on_done` is called once the other process is done with the call, even if it was cancelled here.

        Raises:
            DeviceLostError: the other process is gone.
        """
        number, reply = next(self._numbers), asyncio.get_running_loop().create_future()
        self._pending[number] = reply, on_done
        try:
            self._send(Frame("call", number, method, Raw(_encode(args))))
        except Exception as error:  # noqa: BLE001  lone surrogates cannot be encoded
            self._settle(number, error)
        if self._transport.is_closing() and number in self._pending:
            self._settle(number, DeviceLostError(LOST))
        try:
            result: T = _decoder(returns).decode(await reply)
        except asyncio.CancelledError:
            self._send(Frame("cancel", number))
            raise
        return result

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Store the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Handle every complete message."""
        self._received += data
        received, begin = memoryview(self._received), 0
        try:
            while (body := begin + LENGTH_BYTES) <= len(received):
                end = body + int.from_bytes(received[begin:body], "little")
                if end - body > self._max_bytes:
                    raise MsgspecError(f"a message of {end - body} bytes")  # noqa: TRY301  handled as malformed ones
                if end > len(received):
                    break
                begin = end
                self._receive(_decoder(Frame).decode(bytes(received[body:end])))
        except (MsgspecError, KeyError) as error:  # the other process is faulty or compromised
            logger.error("rpc.aborted", extra={"reason": str(error)})  # noqa: TRY400  the traceback is of no use
            self._transport.abort()
        received.release()
        del self._received[:begin]

    def connection_lost(self, _: Exception | None) -> None:
        """Cancel running methods and fail pending calls."""
        for running in list(self._running.values()):
            running.cancel()
        for number in list(self._pending):
            self._settle(number, DeviceLostError(LOST))
        self.lost.set_result(None)

    def _send(self, frame: Frame) -> None:
        """Send at the end of this iteration of the event loop, all frames in one write."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        data = _encode(frame)
        self._unsent += (len(data).to_bytes(LENGTH_BYTES, "little"), data)

    def _flush(self) -> None:
        if self._unsent and not self._transport.is_closing():
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _receive(self, frame: Frame) -> None:
        match frame.kind:
            case "call":
                method, arguments = self._methods[frame.method]
                running = asyncio.ensure_future(method(*arguments.decode(frame.body)))
                self._running[frame.number] = running
                running.add_done_callback(partial(self._reply, frame.number))
            case "cancel":
                if frame.number in self._running:
                    self._running[frame.number].cancel()
            case "result":
                self._settle(frame.number, frame.body)
            case "error":
                self._settle(frame.number, from_wire(_decoder(WireError).decode(frame.body)))

    def _settle(self, number: int, outcome: Raw | Exception) -> None:
        reply, on_done = self._pending.pop(number)
        on_done()
        if reply.done():  # cancelled
            return
        if isinstance(outcome, Exception):
            reply.set_exception(outcome)
        else:
            reply.set_result(outcome)

    def _reply(self, number: int, running: asyncio.Future[Any]) -> None:
        self._running.pop(number, None)
        error = ServiceError("The client cancelled the request.") if running.cancelled() else running.exception()
        try:
            body = Raw(_encode(error or running.result()))
        except Exception as unencodable:  # noqa: BLE001  the caller would wait forever
            error, body = unencodable, Raw(_encode(to_wire(unencodable)))
        if number:
            self._send(Frame("error" if error else "result", number, body=body))


def _arguments(method: Method) -> Decoder[Any]:
    hints = get_type_hints(method, include_extras=True)
    return Decoder(tuple[tuple(hint for name, hint in hints.items() if name != "return")])  # type: ignore[misc]
