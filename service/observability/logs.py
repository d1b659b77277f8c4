"""Logging: dotted event names with `extra` fields, and the request id from a context variable.

Image bytes, keys and bodies are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""Id of the current request; empty outside requests."""


STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def facts(record: logging.LogRecord) -> dict[str, object]:
    """The `extra` fields of a record, and the request id."""
    found = {name: value for name, value in vars(record).items() if name not in STANDARD_FIELDS}
    if current := request_id.get():
        found["request_id"] = current
    return found


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format `record` with its fields."""
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
    """One line of text: time, level, event, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format `record` with its fields; control characters are escaped."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        fields = " ".join(f"{name}={value!r}" for name, value in facts(record).items())
        line = f"{at} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        line = line.encode("unicode_escape").decode("ascii")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def is_json() -> bool:
    """Whether `install` chose JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Log an uncaught exception; replaces the hooks of `sys` and `threading`."""
    if kind is not SystemExit:
        logging.getLogger(__name__).critical("process.failed", exc_info=(kind, error or kind(), trace))


def install(log_format: str, level: str) -> None:
    """Log to stderr in the given format, also warnings and uncaught exceptions."""
    logging.captureWarnings(capture=True)
    sys.excepthook = log_uncaught
    threading.excepthook = lambda ended: log_uncaught(ended.exc_type, ended.exc_value, ended.exc_traceback)
    handler = logging.StreamHandler(sys.stderr)
    # open_clip logs progress to the root logger, which this service does not use.
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
    for name in ("httpx", "httpcore", "PIL", "open_clip", "torch"):
        logging.getLogger(name).setLevel("WARNING")
    # These two warn about damaged client data, which would let clients flood the log.
    logging.getLogger("python_multipart").setLevel("ERROR")
    warnings.filterwarnings("ignore", module=r"PIL\..*")
