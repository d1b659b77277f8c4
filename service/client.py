"""The client behind `caspl classify`: sends image files, shows answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from service.errors import ServiceError

IMAGES_PER_REQUEST: Final = 16
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
    """Send the files, 16 at a time.

    Returns:
        One object per file: `file`, `domain`, `version`, `digest`, `predictions`, `error`.

    Raises:
        AskError: a file cannot be read, the service cannot be reached or refuses.
    """
    headers = {"Authorization": f"Bearer {question.key}"} if question.key else {}
    answers: list[dict[str, Any]] = []
    with httpx.Client(base_url=question.url, headers=headers, timeout=TIMEOUT) as client:
        for files in _chunks(question.files):
            answers += _ask_once(client, question, files)
    return answers


def _chunks(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for start in range(0, len(files), IMAGES_PER_REQUEST):
        yield files[start : start + IMAGES_PER_REQUEST]


def _ask_once(client: httpx.Client, question: Question, files: Sequence[Path]) -> list[dict[str, Any]]:
    try:
        parts = [("images", (path.name, path.read_bytes())) for path in files]
    except OSError as error:
        raise AskError(f"Cannot read {error.filename}: {error.strerror}.") from error
    try:
        reply = _post(client, f"/classify/{question.domain}", parts, question.query)
        body = reply.json()
    except httpx.HTTPError as error:
        raise AskError(f"Cannot reach {question.url}: {error}") from error
    except json.JSONDecodeError as error:
        raise AskError(f"{question.url} does not answer like CasPL Serve.") from error
    if reply.is_success:
        results, about = body["results"], {name: body[name] for name in ("domain", "version", "digest")}
    elif len(files) == 1 and str(body.get("code", "")).startswith("image_"):
        results, about = [{"predictions": [], "error": body}], {"domain": question.domain}
    elif "errors" in body and body.get("code") == "images_rejected":
        results = [{"predictions": [], "error": error} for error in body["errors"]]
        about = {"domain": question.domain}
    else:
        raise AskError(f"{body.get('title', 'Refused')}: {body.get('detail', reply.status_code)}")
    return [
        {"file": str(path), **about, "predictions": result["predictions"], "error": result["error"]}
        for path, result in zip(files, results, strict=True)
    ]


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
        version = str(answer.get("version", "-"))
        if answer["error"]:
            table.add_row(
                Path(answer["file"]).name, answer["domain"], version, f"[red]{answer['error']['title']}[/red]", ""
            )
            continue
        texts = [f"{found['label']} {found['probability']:.1%}" for found in answer["predictions"]]
        table.add_row(
            Path(answer["file"]).name, answer["domain"], version, texts[0] if texts else "-", ", ".join(texts[1:])
        )
    console.print(table)
