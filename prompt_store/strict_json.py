"""JSON without its ambiguities: the one loader for headers, manifests and records, and the one canonical writer.

Knows JSON only. `json.loads` lets later duplicates win, reads NaN, turns 1e999 into infinity and passes lone
surrogates on; two readers of one file could then see two different things. Here all of that is refused.
"""

import json
import math
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 8
MAX_INTEGER: Final = 2**53
_MAX_INTEGER_CHARS: Final = 17


class StrictJsonError(ValueError):
    """The text is not JSON, or not the strict JSON read here; the message never repeats the text."""


class DuplicateKeyError(StrictJsonError):
    """One object holds the same key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise DuplicateKeyError("expected every key once per object, found one twice")
    return result


def _constant(_text: str) -> NoReturn:
    raise StrictJsonError("expected finite numbers, found NaN or Infinity")


def _integer(text: str) -> int:
    if len(text) > _MAX_INTEGER_CHARS or abs(int(text)) > MAX_INTEGER:
        raise StrictJsonError("expected integers of at most 2^53, found a larger one")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError("expected finite numbers, found one that overflows")
    return value


def _check_text(text: str) -> None:
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise StrictJsonError("expected whole Unicode characters, found a lone surrogate")


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
            raise StrictJsonError(f"expected at most {max_depth} nested levels, found more")
        level = [child for node in containers if isinstance(node, list) for child in node]


def load_object(data: bytes | str, *, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Read one JSON object that starts at the first byte; spaces may follow it.

    Raises:
        DuplicateKeyError: an object holds a key twice.
        StrictJsonError: any other broken rule, including text that is not UTF-8.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
    except StrictJsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise StrictJsonError("expected UTF-8 JSON, found something else") from error
    if not text.startswith("{") or not isinstance(value, dict):
        raise StrictJsonError("expected an object whose first byte is {")
    _check_tree(value, max_depth)
    return value


def dump_canonical(value: object) -> bytes:
    """Write canonical JSON: sorted keys, no spaces, UTF-8; the same value always gives the same bytes.

    Raises:
        ValueError: the value holds NaN, infinity or a lone surrogate.
        TypeError: the value is not made of JSON types.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")
