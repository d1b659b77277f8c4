"""JSON bodies with images. Memory is bounded by the body: nothing is built beyond the allowed images."""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from prompt_store.class_names import UNLABELLED
from service.errors import ImageRejectedError, RequestInvalidError
from service.images.headers import too_large

NULL: Final = Raw(b"null")
Image = TypeVar("Image", bound="Base64Image")
Body = TypeVar("Body", bound=Struct)

BOM: Final = b"\xef\xbb\xbf"
LONG_KEY: Final = re.compile(rb'"[^"]{1024,}+"\s*:')
KEY: Final = re.compile(rb'"(?:images|b64|domain|label)"\s*+:')
ESCAPED_QUOTE: Final = re.compile(rb'\\"')
MAX_SHOWN_CHARS: Final = 200
MAX_NAME_BYTES: Final = 4096
"""Of a domain or label as JSON; with escapes, the longest valid name has about 1,600."""
MAX_QUOTES: Final = 100_000
"""The expressions that find keys take time for every quote."""
MALFORMED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Raised by msgspec for bodies that are not JSON, or not of the expected form."""
MAX_BASE64_GROWTH: Final = 1.5
"""A longer string, with line breaks and escapes, is not decoded; base64 alone takes 1.33 times the image."""
DATA_URL: Final = re.compile(rb"data:image/[\w.+-]+(?:;[\w.=-]+)*;base64,", re.IGNORECASE)
NOT_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/_\s-]")
STANDARD: Final = bytes.maketrans(b"-_", b"+/")
WHITESPACE: Final = b" \t\r\n\v\f"
PART_BYTES: Final = 2**18


class Base64Image(Struct, forbid_unknown_fields=True):
    """One image; the string is decoded by `decode_base64`."""

    b64: Raw


class MixedImage(Base64Image):
    """One image, and its domain as JSON."""

    domain: Raw

    def name(self, index: int) -> str:
        """The domain; raises as `decode_string` does."""
        return _decode_name(self.domain, f"images[{index}].domain")


class LabelledImage(Base64Image):
    """One image, and its label as JSON, which may be null."""

    label: Raw

    def name(self, index: int) -> str:
        """The label, or `unlabelled`; raises as `decode_string` does."""
        return UNLABELLED if self.label == NULL else _decode_name(self.label, f"images[{index}].label")


@lru_cache(maxsize=8)
def _decoder(image: type[Base64Image], max_images: int) -> msgspec.json.Decoder[Any]:
    """Decodes `{"images": [...]}` into at most one image more than allowed; others are skipped.

    A list with a maximum length would be built before its length is checked. An array-like struct has a field per
    element.
    """
    fields = [(f"image_{index}", image | UnsetType, UNSET) for index in range(max_images + 1)]
    images = msgspec.defstruct("Images", fields, array_like=True)
    body = msgspec.defstruct("Body", [("images", images)], forbid_unknown_fields=True)
    return msgspec.json.Decoder(body)


def parse_images(body: bytes, image: type[Image], max_images: int, form: str) -> list[Image]:
    """The images of a JSON body; one more than `max_images` if there are too many. `form` is for the message.

    Raises:
        RequestInvalidError: not JSON of this form; the message gives the key, the index or the byte.
    """
    text = memoryview(body)[len(BOM) :] if body.startswith(BOM) else body
    try:
        if body.count(b'"') > MAX_QUOTES:
            raise msgspec.ValidationError(f"more than {MAX_QUOTES} quotes")
        # msgspec would copy a long key into its message. No valid body contains a quote inside a string.
        if key := ESCAPED_QUOTE.search(text) or LONG_KEY.search(text):
            raise msgspec.ValidationError(f"a long key or a quote at byte {key.start()}")
        fields = msgspec.structs.astuple(_decoder(image, max_images).decode(text).images)
        images = [one for one in fields if one is not UNSET]
        n_keys = 1 + len(images) * len(image.__struct_fields__)
        # Of duplicate keys msgspec keeps the last; the images of the others would be ignored.
        if len(images) <= max_images and next(islice(KEY.finditer(text), n_keys, None), None):
            raise msgspec.ValidationError("a key that occurs more than once in its object")
    except MALFORMED as error:
        raise malformed(error, form) from error
    return images


def decode_body(
    data: bytes, decoder: msgspec.json.Decoder[Body], form: str, key: re.Pattern[bytes], n_keys: Callable[[Body], int]
) -> Body:
    """Decode a JSON body into a struct, in which `key` must match `n_keys` times. `form` is for the message.

    Raises:
        RequestInvalidError: not JSON of this form, or with duplicate keys.
    """
    text = data.removeprefix(BOM)
    try:
        if text.count(b'"') > MAX_QUOTES:
            raise msgspec.ValidationError(f"more than {MAX_QUOTES} quotes")
        if long_key := LONG_KEY.search(text):  # msgspec would copy it into its message
            raise msgspec.ValidationError(f"a long key at byte {long_key.start()}")
        body = decoder.decode(text)
        # Of duplicate keys msgspec keeps the last; the values of the others would be ignored.
        n_expected = n_keys(body)
        if len(list(islice(key.finditer(text), n_expected + 1))) != n_expected:
            raise msgspec.ValidationError("a key that occurs more than once in its object, or has escapes")
    except MALFORMED as error:
        raise malformed(error, form) from error
    return body


def malformed(error: Exception, form: str) -> RequestInvalidError:
    """The error for JSON that is not of a `form`; `error` is one of `MALFORMED`."""
    found = str(error)[:MAX_SHOWN_CHARS] if isinstance(error, msgspec.MsgspecError) else "invalid UTF-8 or nesting"
    reason = found if found.isprintable() else "unprintable key"
    return RequestInvalidError(f"Expected JSON of the form {form}. Found: {reason}.")


def decode_string(raw: Raw, name: str) -> str:
    """Decode a JSON string; `name` is for the message.

    Raises:
        RequestInvalidError: not a string, or not UTF-8.
    """
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RequestInvalidError(f"{name} must be a string of UTF-8 text.") from error


def _decode_name(raw: Raw, name: str) -> str:
    """Decode a domain or label; raises as `decode_string` does, also if it is too long."""
    if (n_bytes := len(memoryview(raw))) > MAX_NAME_BYTES:
        raise RequestInvalidError(f"{name} has {n_bytes} bytes; the limit is {MAX_NAME_BYTES}.")
    return decode_string(raw, name)


def decode_base64(raw: Raw, name: str, max_bytes: int) -> bytes:
    """Decode an image of at most `max_bytes` from a base64 string in JSON.

    Allowed are a `data:image/...;base64,` prefix, whitespace, the URL-safe alphabet, and missing padding.

    Raises:
        RequestInvalidError: not a string.
        ImageTooLargeError: too long.
        ImageRejectedError: not base64; the message gives the position.
    """
    text = memoryview(raw)
    if text[0] != ord('"'):
        raise RequestInvalidError(f"{name} must be a string.")
    if len(text) > MAX_BASE64_GROWTH * max_bytes + MAX_SHOWN_CHARS:
        raise too_large(len(text) * 3 // 4, max_bytes)
    try:
        return binascii.a2b_base64(text[1:-1], strict_mode=True)
    except binascii.Error:
        has_escapes = re.search(rb"\\", text) is not None
        return _decode_leniently(decode_string(raw, name).encode() if has_escapes else text[1:-1], name)


def _decode_leniently(text: bytes | memoryview, name: str) -> bytes:
    prefix, tail = DATA_URL.match(text), bytes(text[-MAX_SHOWN_CHARS:])
    begin = prefix.end() if prefix else 0
    end = len(text) - len(tail) + len(tail.rstrip().removesuffix(b"=").rstrip().removesuffix(b"="))
    if wrong := NOT_BASE64.search(text, begin, end):
        at = wrong.start()
        found = bytes(text[at : at + 4]).decode(errors="replace")[0]
        hint = " Image URLs are not supported." if b"://" in bytes(text[:MAX_SHOWN_CHARS]) else ""
        raise _rejected(f"{name}: expected base64, found {found!a} at position {at}.{hint}")
    image, digits = io.BytesIO(), b""
    for at in range(begin, end, PART_BYTES):
        digits += bytes(text[at : min(at + PART_BYTES, end)]).translate(STANDARD, WHITESPACE)
        n_whole = len(digits) // 4 * 4
        image.write(binascii.a2b_base64(digits[:n_whole]))
        digits = digits[n_whole:]
    if len(digits) == 1:
        raise _rejected(f"{name}: expected base64, found an incomplete group of 4 characters at the end.")
    image.write(binascii.a2b_base64(digits + b"=" * (-len(digits) % 4)))
    return image.getvalue()


def _rejected(message: str) -> ImageRejectedError:
    return ImageRejectedError(message, code="image_base64")
