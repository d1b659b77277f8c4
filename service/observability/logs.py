"""How the service logs: dotted event names, facts beside them, the request id from a context variable.

Handlers are installed here and nowhere else. Image bytes, keys and bodies are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The id of the request being answered; empty outside requests."""

STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def facts(record: logging.LogRecord) -> dict[str, object]:
    """The `extra` facts of a record, with the request id if there is one."""
    found = {name: value for name, value in vars(record).items() if name not in STANDARD_FIELDS}
    if current := request_id.get():
        found["request_id"] = current
    return found


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Render `record` with its facts."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **facts(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=True)


class TextFormatter(logging.Formatter):
    """One line for people: time, level, event, facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Render `record` with its facts, control characters escaped."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        told = " ".join(f"{name}={value!r}" for name, value in facts(record).items())
        line = f"{at} {record.levelname.lower():7} {record.getMessage()} {told}".rstrip()
        line = line.encode("unicode_escape").decode("ascii")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def install(log_format: str, level: str) -> None:
    """Send every log line of this process to standard error in one format."""
    handler = logging.StreamHandler(sys.stderr)
    # open_clip tells its steps through the root logger, which nobody here uses.
    handler.addFilter(lambda record: record.name != "root" or record.levelno >= logging.WARNING)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel("WARNING")
    for name in ("httpx", "httpcore", "PIL", "open_clip"):
        logging.getLogger(name).setLevel("WARNING")
    # What a client sends must not be able to drive the log: these two warn about damaged metadata and bodies.
    logging.getLogger("python_multipart").setLevel("ERROR")
    warnings.filterwarnings("ignore", module=r"PIL\..*")
