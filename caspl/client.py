"""Clients of a CasPL server, synchronous and asynchronous."""

import asyncio
import functools
import inspect
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeAlias, TypeVar, Unpack, cast

import httpx

from caspl import operations, rollouts, teaching
from caspl.folders import find_pictures, pictures_per_request
from caspl.operations import ClassifyOptions
from caspl.requests import Operation, Request, advance
from caspl.results import Classification
from caspl.retries import RETRY_FOR_S, Attempts, response_or_error

DEFAULT_URL: Final = "http://127.0.0.1:8000"
MAX_CONCURRENT: Final = 4
"""Requests at a time, of operations with many."""
MAX_AHEAD: Final = 2 * MAX_CONCURRENT
"""Requests of `classify_files` whose results have not been taken yet."""

P = ParamSpec("P")
T = TypeVar("T")
Paths: TypeAlias = "str | PathLike[str] | Iterable[str | PathLike[str]]"
FileResult: TypeAlias = tuple[Path, Classification]


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

    Requests are retried after 429 and 503, with the pause of `Retry-After`. Once the server has answered a request,
    failed connections are retried too, so that clients survive a restart. If the server may already have executed a
    request, only reads, `classify`, `publish` and `add_examples` are retried.

    Args:
        base_url: where the server is.
        api_key: needed unless the server is open.
        timeout_s: longest wait for each response; connecting may take 5 s.
        retry_for_s: how long after its first failure a request is retried.
        transport: httpx transport to use instead of a network connection.
    """

    classify = _blocking(operations.classify)
    domains = _blocking(operations.domains)
    publish = _blocking(operations.publish)
    activate = _blocking(operations.activate)
    rollback = _blocking(operations.rollback)
    start_rollout = _blocking(rollouts.start_rollout)
    rollout = _blocking(rollouts.rollout)
    stop_rollout = _blocking(rollouts.stop_rollout)
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
        retry_for_s: float = RETRY_FOR_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retry_for_s = retry_for_s
        self._was_reached = False
        self._is_interrupted = threading.Event()
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
        step = advance(operation, None)
        while (needed := step.next) is not None:
            reply = self.send(needed) if isinstance(needed, Request) else self._run_all(needed.operations)
            step = advance(operation, reply)
        return cast("T", step.result)

    def _run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        with self._threads() as pool:
            return list(pool.map(self.run, operations))

    @contextmanager
    def _threads(self) -> Iterator[ThreadPoolExecutor]:
        """Threads for requests; on an error or Ctrl-C, those that wait to retry give up."""
        pool = ThreadPoolExecutor(MAX_CONCURRENT)
        try:
            yield pool
        except BaseException:
            self._is_interrupted.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self._is_interrupted.clear()

    def classify_files(
        self, paths: Paths, domain: str, *, recursive: bool = False, **options: Unpack[ClassifyOptions]
    ) -> Iterator[FileResult]:
        """Classify any number of files, in constant memory.

        Args:
            paths: files, or folders of pictures.
            domain: their domain.
            recursive: include the pictures in subfolders.
            options: those of `classify`.

        Yields:
            Each file and its result, in order; a file that cannot be read or is rejected has `error` set.

        Raises:
            CasplError: the server cannot be reached or rejects a request.
            OSError: a path does not exist, or a folder cannot be read.
        """
        requests = pictures_per_request(find_pictures(paths, recursive=recursive).files)
        waiting: deque[Future[list[FileResult]]] = deque()
        with self._threads() as pool:
            for files in requests:
                waiting.append(pool.submit(self.run, operations.classify_files(files, domain, options)))
                if len(waiting) == MAX_AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def send(self, request: Request) -> httpx.Response:
        """Send one request, with retries.

        Raises:
            TransportError: the server cannot be reached or does not answer in time.
        """
        attempts = Attempts(request, self._retry_for_s)
        while True:
            outcome: httpx.Response | httpx.HTTPError
            try:
                outcome = self._http.send(request.built_by(self._http))
            except httpx.HTTPError as error:
                outcome = error
            pause_s = attempts.pause_s(outcome, was_reached=self._was_reached)
            self._was_reached |= isinstance(outcome, httpx.Response)
            if pause_s is None or self._is_interrupted.wait(pause_s):
                return response_or_error(outcome, self._http.base_url)


class AsyncClient:
    """An asynchronous client with the arguments, methods and errors of `Client`.

    Files are read and images encoded on a thread.
    """

    classify = _awaitable(operations.classify)
    domains = _awaitable(operations.domains)
    publish = _awaitable(operations.publish)
    activate = _awaitable(operations.activate)
    rollback = _awaitable(operations.rollback)
    start_rollout = _awaitable(rollouts.start_rollout)
    rollout = _awaitable(rollouts.rollout)
    stop_rollout = _awaitable(rollouts.stop_rollout)
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
        retry_for_s: float = RETRY_FOR_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retry_for_s = retry_for_s
        self._was_reached = False
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
        step = await asyncio.to_thread(advance, operation, None)
        while (needed := step.next) is not None:
            reply = await (self.send(needed) if isinstance(needed, Request) else self._run_all(needed.operations))
            step = await asyncio.to_thread(advance, operation, reply)
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

    async def classify_files(
        self, paths: Paths, domain: str, *, recursive: bool = False, **options: Unpack[ClassifyOptions]
    ) -> AsyncIterator[FileResult]:
        """Classify any number of files; see `Client.classify_files`."""
        found = await asyncio.to_thread(find_pictures, paths, recursive=recursive)
        waiting: deque[asyncio.Task[list[FileResult]]] = deque()
        turn = asyncio.Semaphore(MAX_CONCURRENT)

        async def run(files: Sequence[Path]) -> list[FileResult]:
            async with turn:
                return await self.run(operations.classify_files(files, domain, options))

        try:
            for files in pictures_per_request(found.files):
                waiting.append(asyncio.create_task(run(files)))
                if len(waiting) == MAX_AHEAD:
                    for result in await waiting.popleft():
                        yield result
            while waiting:
                for result in await waiting.popleft():
                    yield result
        finally:
            for task in waiting:
                task.cancel()

    async def send(self, request: Request) -> httpx.Response:
        """Send one request; see `Client.send`."""
        attempts = Attempts(request, self._retry_for_s)
        while True:
            outcome: httpx.Response | httpx.HTTPError
            try:
                outcome = await self._http.send(request.built_by(self._http))
            except httpx.HTTPError as error:
                outcome = error
            pause_s = attempts.pause_s(outcome, was_reached=self._was_reached)
            self._was_reached |= isinstance(outcome, httpx.Response)
            if pause_s is None:
                return response_or_error(outcome, self._http.base_url)
            await asyncio.sleep(pause_s)


def _http_options(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": base_url, "headers": headers, "timeout": httpx.Timeout(timeout_s, connect=5.0)}
