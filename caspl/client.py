"""Clients of a CasPL server, synchronous and asynchronous."""

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, cast

import httpx

from caspl import operations, teaching
from caspl.errors import TransportError
from caspl.requests import Concurrently, Operation, Request

DEFAULT_URL: Final = "http://127.0.0.1:8000"
BUSY: Final = frozenset({429, 503})
MAX_PAUSE_S: Final = 10.0
MAX_CONCURRENT: Final = 4
"""Requests at a time, of operations with many."""

P = ParamSpec("P")
T = TypeVar("T")


def _document(method: Callable[..., Any], operation: Callable[..., Any]) -> None:
    """Give a method the operation's name, docstring and parameters."""
    functools.update_wrapper(method, operation)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = inspect.signature(operation).parameters.values()
    method.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]


def _blocking(operation: Callable[P, Operation[T]]) -> "Callable[Concatenate[Client, P], T]":
    def method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client.run(operation(*args, **kwargs))

    _document(method, operation)
    return method


def _awaitable(operation: Callable[P, Operation[T]]) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    async def method(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client.run(operation(*args, **kwargs))

    _document(method, operation)
    return method


class Client:
    """A synchronous client; as a context manager it closes its connections.

    A request that the server answers with 429 or 503 is repeated after `Retry-After`, at most 10 s.

    Args:
        base_url: where the server is.
        api_key: needed unless the server is open.
        timeout_s: longest wait for each response; connecting may take 5 s.
        max_attempts: how often a request is sent to a busy server.
        transport: httpx transport to use instead of a network connection.
    """

    classify = _blocking(operations.classify)
    domains = _blocking(operations.domains)
    publish = _blocking(operations.publish)
    activate = _blocking(operations.activate)
    rollback = _blocking(operations.rollback)
    create_domain = _blocking(teaching.create_domain)
    add_examples = _blocking(teaching.add_examples)
    examples = _blocking(teaching.examples)
    relabel = _blocking(teaching.relabel)
    remove_examples = _blocking(teaching.remove_examples)
    fit = _blocking(teaching.fit)
    fit_report = _blocking(teaching.fit_report)

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_attempts: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._max_attempts = max_attempts
        self._http = httpx.Client(transport=transport, **_http_options(base_url, api_key, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def run(self, operation: Operation[T]) -> T:
        """Run an operation to its end; see `caspl.requests`."""
        step = _advance(operation, None)
        while step.next is not None:
            asked = step.next
            reply = self.send(asked) if isinstance(asked, Request) else self._run_all(asked.operations)
            step = _advance(operation, reply)
        return cast("T", step.result)

    def _run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
            return list(pool.map(self.run, operations))

    def send(self, request: Request) -> httpx.Response:
        """Send one request, with retries.

        Raises:
            TransportError: the server cannot be reached or does not answer in time.
        """
        for _ in range(self._max_attempts - 1):
            response = self._send_once(request)
            if response.status_code not in BUSY:
                return response
            time.sleep(_pause_s(response))
        return self._send_once(request)

    def _send_once(self, request: Request) -> httpx.Response:
        try:
            return self._http.request(request.method, request.path, **request.options)
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error


class AsyncClient:
    """An asynchronous client with the arguments, methods and errors of `Client`.

    Files are read and images encoded on a thread.
    """

    classify = _awaitable(operations.classify)
    domains = _awaitable(operations.domains)
    publish = _awaitable(operations.publish)
    activate = _awaitable(operations.activate)
    rollback = _awaitable(operations.rollback)
    create_domain = _awaitable(teaching.create_domain)
    add_examples = _awaitable(teaching.add_examples)
    examples = _awaitable(teaching.examples)
    relabel = _awaitable(teaching.relabel)
    remove_examples = _awaitable(teaching.remove_examples)
    fit = _awaitable(teaching.fit)
    fit_report = _awaitable(teaching.fit_report)

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_attempts: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._max_attempts = max_attempts
        self._http = httpx.AsyncClient(transport=transport, **_http_options(base_url, api_key, timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation to its end; see `caspl.requests`."""
        step = await asyncio.to_thread(_advance, operation, None)
        while step.next is not None:
            asked = step.next
            reply = await (self.send(asked) if isinstance(asked, Request) else self._run_all(asked.operations))
            step = await asyncio.to_thread(_advance, operation, reply)
        return cast("T", step.result)

    async def _run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        turn = asyncio.Semaphore(MAX_CONCURRENT)

        async def run(operation: Operation[Any]) -> Any:  # noqa: ANN401  of operations of any kind
            async with turn:
                return await self.run(operation)

        tasks = [asyncio.create_task(run(operation)) for operation in operations]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def send(self, request: Request) -> httpx.Response:
        """Send one request; see `Client.send`."""
        for _ in range(self._max_attempts - 1):
            response = await self._send_once(request)
            if response.status_code not in BUSY:
                return response
            await asyncio.sleep(_pause_s(response))
        return await self._send_once(request)

    async def _send_once(self, request: Request) -> httpx.Response:
        try:
            return await self._http.request(request.method, request.path, **request.options)
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error


def _http_options(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": base_url, "headers": headers, "timeout": httpx.Timeout(timeout_s, connect=5.0)}


@dataclass(frozen=True)
class _Step:
    """What an operation needs next; None at its end, when it has a result."""

    next: Request | Concurrently | None
    result: Any = None


def _advance(operation: Operation[Any], reply: httpx.Response | list[Any] | None) -> _Step:
    try:
        return _Step(next(operation) if reply is None else operation.send(reply))
    except StopIteration as end:
        return _Step(None, end.value)


def _pause_s(response: httpx.Response) -> float:
    retry_after = response.headers.get("retry-after", "")
    return min(float(retry_after) if retry_after.isdecimal() else 1.0, MAX_PAUSE_S)


def _unreachable(url: httpx.URL, error: httpx.HTTPError) -> TransportError:
    return TransportError(f"Cannot reach {url}", str(error) or type(error).__name__, code="server_unreachable")
