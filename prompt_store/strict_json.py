"""Strict JSON parsing for headers, manifests and records, and canonical JSON output.

`json.loads` accepts duplicate keys, NaN, numbers that overflow to infinity, and lone surrogates. Two parsers could
then read different values from one file, so all of these are rejected here.
"""

import json
import math
import re
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 8
MAX_INTEGER: Final = 2**53
MAX_VALUES: Final = 100_000
"""Several times as many as in the largest manifest. A value of two bytes of JSON may take a hundred bytes of memory."""
_STRING_OR_COMMA: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|,', re.DOTALL)
_MAX_INTEGER_CHARS: Final = 17


class StrictJsonError(ValueError):
    """Not valid strict JSON; the message never quotes the input."""


class DuplicateKeyError(StrictJsonError):
    """An object has the same key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise DuplicateKeyError("duplicate key in an object")
    return result


def _constant(_text: str) -> NoReturn:
    raise StrictJsonError("NaN and Infinity are not allowed")


def _integer(text: str) -> int:
    if len(text) > _MAX_INTEGER_CHARS or abs(int(text)) > MAX_INTEGER:
        raise StrictJsonError("integer larger than 2^53")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError("number overflows a float")
    return value


def _check_text(text: str) -> None:
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise StrictJsonError("lone surrogate in a string")


def _check_tree(root: object, max_depth: int) -> None:
    level: list[object] = [root]
    depth = 0
    while level:
        containers: list[object] = []
        for node in level:
            if isinstance(node, str):
                _check_text(node)
            elif isinstance(node, dict):
                for key in node:
                    _check_text(key)
                containers.append(list(node.values()))
            elif isinstance(node, list):
                containers.append(node)
        depth += 1 if containers else 0
        if depth > max_depth:
            raise StrictJsonError(f"nested deeper than {max_depth} levels")
        level = [child for node in containers if isinstance(node, list) for child in node]


def _check_count(text: str) -> None:
    """Bound the memory of parsing: every value of an object or a list but the first follows a comma."""
    if text.count(",") < MAX_VALUES:
        return
    if sum(found[0] == "," for found in _STRING_OR_COMMA.finditer(text)) >= MAX_VALUES:
        raise StrictJsonError(f"more than {MAX_VALUES} values")


def load_object(data: bytes | str, *, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Parse one JSON object that starts at the first byte; trailing whitespace is allowed.

    Raises:
        DuplicateKeyError: an object has the same key twice.
        StrictJsonError: any other violation, including invalid UTF-8.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        _check_count(text)
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
    except StrictJsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise StrictJsonError("not valid UTF-8 JSON") from error
    if not text.startswith("{") or not isinstance(value, dict):
        raise StrictJsonError("not a JSON object, or the first byte is not {")
    _check_tree(value, max_depth)
    return value


def dump_canonical(value: object) -> bytes:
    """Encode as canonical JSON: sorted keys, no spaces, UTF-8; deterministic.

    Raises:
        ValueError: the value contains NaN, infinity or a lone surrogate.
        TypeError: the value contains a type that JSON lacks.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")
