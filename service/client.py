"""The client behind `caspl classify`: sends image files, shows answers.

Knows the default limits of a service, and halves what a stricter one calls too large. Text from outside (file names,
labels, problems) is shown as it is: it cannot carry markup or control sequences.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.errors import ServiceError

IMAGES_PER_REQUEST: Final = 16
BYTES_PER_REQUEST: Final = 30 * 1024 * 1024
"""Of the 32 MiB that a service takes by default; the rest is for the multipart body's own lines."""
TOO_LARGE: Final = 413
ATTEMPTS: Final = 3
MAX_PAUSE_S: Final = 10.0
TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)


@dataclass(frozen=True)
class Question:
    """What to ask, about which files, and where."""

    url: str
    domain: str
    files: tuple[Path, ...]
    query: dict[str, Any]
    key: str | None


class AskError(ServiceError):
    """The service cannot be reached, or refused the request as a whole."""

    default_code = "ask_failed"


def ask(question: Question) -> list[dict[str, Any]]:
    """Send the files, at most 16 and 30 MiB at a time.

    A failure of the first request is raised. After that, what was answered is worth keeping: the files from the failure
    on have it as their `error`, and are not sent.

    Returns:
        One object per file: `file`, `domain`, `version`, `digest`, `predictions`, `error`; where the request was
        refused, without `version` and `digest`.

    Raises:
        AskError: a file cannot be read, the service cannot be reached or refuses.
    """
    headers = {"Authorization": f"Bearer {question.key}"} if question.key else {}
    chunks = list(_chunks(question.files))
    answers: list[dict[str, Any]] = []
    with httpx.Client(base_url=question.url, headers=headers, timeout=TIMEOUT) as client:
        try:
            for files in chunks:
                for answered in _ask_chunk(client, question, files):
                    answers += answered
        except AskError as error:
            if not answers:
                raise
            problem = {"title": "Not answered", "code": error.code, "detail": str(error)}
            answers += [_refused(path, question, problem) for path in question.files[len(answers) :]]
    return answers


def _chunks(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """Files in order, as many together as one request may carry; a file beyond the limit goes alone."""
    chunk: list[Path] = []
    n_bytes = 0
    for path in files:
        size = _size(path)
        if chunk and (len(chunk) == IMAGES_PER_REQUEST or n_bytes + size > BYTES_PER_REQUEST):
            yield chunk
            chunk, n_bytes = [], 0
        chunk.append(path)
        n_bytes += size
    if chunk:
        yield chunk


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(error) from error


def _ask_chunk(client: httpx.Client, question: Question, files: Sequence[Path]) -> Iterator[list[dict[str, Any]]]:
    """The answers of one request; first of one half and then of the other when the service calls it too large."""
    reply, body = _send(client, question, files)
    if reply.status_code == TOO_LARGE and len(files) > 1:
        half = len(files) // 2
        yield from _ask_chunk(client, question, files[:half])
        yield from _ask_chunk(client, question, files[half:])
    else:
        yield _answers(reply, body, question, files)


def _answers(
    reply: httpx.Response, body: dict[str, Any], question: Question, files: Sequence[Path]
) -> list[dict[str, Any]]:
    if reply.is_success:
        about = {name: body[name] for name in ("domain", "version", "digest")}
        return [
            {"file": str(path), **about, "predictions": result["predictions"], "error": result["error"]}
            for path, result in zip(files, body["results"], strict=True)
        ]
    code = str(body.get("code", ""))
    if len(files) == 1 and (code.startswith("image_") or reply.status_code == TOO_LARGE):
        return [_refused(files[0], question, body)]
    if code == "images_rejected":
        return [_refused(path, question, problem) for path, problem in zip(files, body["errors"], strict=True)]
    raise AskError(f"{body.get('title', 'Refused')}: {body.get('detail', reply.status_code)}")


def _send(client: httpx.Client, question: Question, files: Sequence[Path]) -> tuple[httpx.Response, dict[str, Any]]:
    try:
        parts = [("images", (path.name, path.read_bytes())) for path in files]
    except OSError as error:
        raise _unreadable(error) from error
    try:
        reply = _post(client, f"/classify/{question.domain}", parts, question.query)
        body = reply.json()
    except httpx.HTTPError as error:
        raise AskError(f"Cannot reach {question.url}: {error}") from error
    except ValueError as error:
        raise AskError(f"{question.url} does not answer like CasPL Serve.") from error
    if not isinstance(body, dict) or (reply.is_success and "results" not in body):
        raise AskError(f"{question.url} does not answer like CasPL Serve.")
    return reply, body


def _refused(path: Path, question: Question, problem: dict[str, Any]) -> dict[str, Any]:
    return {"file": str(path), "domain": question.domain, "predictions": [], "error": problem}


def _unreadable(error: OSError) -> AskError:
    return AskError(f"Cannot read {error.filename}: {error.strerror}.")


def _post(client: httpx.Client, path: str, parts: list[Any], query: dict[str, Any]) -> httpx.Response:
    """Send, and send again when the service says that it is too busy right now."""
    reply = client.post(path, files=parts, params=query)
    for _ in range(ATTEMPTS - 1):
        if reply.status_code not in {429, 503}:
            break
        told = reply.headers.get("retry-after", "")
        time.sleep(min(float(told) if told.isdecimal() else 1.0, MAX_PAUSE_S))
        reply = client.post(path, files=parts, params=query)
    return reply


def show(answers: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a table for people."""
    table = Table()
    table.add_column("image", no_wrap=True)
    for column in ("domain", "version", "prediction", "next"):
        table.add_column(column)
    for answer in answers:
        if answer["error"]:
            found = [_cell(answer["error"].get("title", "Refused"), "red"), _cell("")]
        else:
            texts = [f"{one['label']} {one['probability']:.1%}" for one in answer["predictions"]]
            found = [_cell(texts[0] if texts else "-"), _cell(", ".join(texts[1:]))]
        image, domain, version = Path(answer["file"]).name, answer["domain"], str(answer.get("version", "-"))
        table.add_row(_cell(image), _cell(domain), _cell(version), *found)
    console.print(table)
    details = {answer["error"]["detail"] for answer in answers if answer["error"] and "detail" in answer["error"]}
    for detail in sorted(details):
        console.print(_cell(detail), soft_wrap=True)


def _cell(text: str, style: str = "") -> Text:
    return Text("".join(char if char.isprintable() else "?" for char in text), style)
