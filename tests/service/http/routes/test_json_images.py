"""JSON bodies: memory is bounded whatever they contain, and base64 is read in every unambiguous spelling."""

import base64
import json
import tracemalloc

import msgspec
import pytest

from service.errors import ImageRejectedError, ImageTooLargeError, RequestInvalidError
from service.http.routes.json_images import PART_BYTES, Base64Image, decode_base64, parse_images

MIB = 2**20
BOMBS = {
    "strings": b'{"images":[' + b'"",' * 4_000_000 + b'""]}',
    "objects": b'{"images":[' + b"{}," * 4_000_000 + b"{}]}",
    "numbers": b'{"images":[' + b"1," * 6_000_000 + b"1]}",
    "images": b'{"images":[' + b'{"b64":""},' * 1_000_000 + b'{"b64":""}]}',
    "nested lists": b'{"images":' + b"[" * 12_000_000,
    "nested lists as an image": b'{"images":[{"b64":' + b"[" * 12_000_000,
    "nested objects": b'{"images":[{"b64":' + b'{"b64":' * 2_000_000,
    "an unknown list": b'{"x":[' + b"1," * 6_000_000 + b"1]}",
    "a list as an image": b'{"images":[{"b64":[' + b"1," * 6_000_000 + b"1]}]}",
    "a long key": b'{"' + b"k" * 12_000_000 + b'":1}',
    "a long key with quotes": b'{"' + rb"k\"" * 4_000_000 + b'":1}',
    "a long string": b'{"images":[{"b64":"' + b"A" * 12_000_000 + b'"}]}',
    "a long string of escapes": b'{"images":[{"b64":"' + rb"\n" * 6_000_000 + b'"}]}',
    "not a string": b"[" * 12_000_000,
}


def decoded(body, max_bytes=MIB):
    images = parse_images(body, Base64Image, 16, "...")
    return [decode_base64(image.b64, f"images[{index}].b64", max_bytes) for index, image in enumerate(images)]


def as_body(*texts):
    return json.dumps({"images": [{"b64": text} for text in texts]}).encode()


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_takes_little_more_memory_than_its_body(bomb):
    tracemalloc.start()
    try:
        n_images = len(decoded(bomb))
    except (RequestInvalidError, ImageTooLargeError):
        n_images = 17
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_images == 17, "refused, or one more image than allowed"
    assert peak < 2 * MIB


def test_many_strings_behind_the_allowed_images_are_refused_before_keys_are_searched():
    body = b'{"images":[' + b'{"b64":""},' * 16 + b'"",' * 100_000 + b'""]}'
    with pytest.raises(RequestInvalidError, match="more than 100000 quotes"):
        decoded(body)


def test_the_message_of_a_refused_body_is_short_and_printable():
    for key in (b"\\u0000", b"k" * 900, "\u202e".encode()):
        with pytest.raises(RequestInvalidError) as refused:
            decoded(b'{"' + key + b'":1}')
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"\xff":1}', b'{"images":[{"b64":"\xff"}]}', b"null", b"{} {}"])
def test_a_body_that_is_not_such_json_is_refused(body):
    with pytest.raises((RequestInvalidError, ImageRejectedError)):
        decoded(body)


@pytest.mark.parametrize("n_bytes", [0, 1, 2, 3, 64, 100, PART_BYTES - 1, 2 * PART_BYTES + 1])
@pytest.mark.parametrize(
    "write",
    [
        base64.b64encode,
        base64.encodebytes,
        lambda data: base64.encodebytes(data).replace(b"\n", b"\r\n"),
        lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
        lambda data: base64.b64encode(data).rstrip(b"="),
        lambda data: base64.b64encode(data) + b"\n",
        lambda data: b"data:image/png;base64," + base64.b64encode(data),
        lambda data: b"DATA:image/svg+xml;charset=utf-8;base64," + base64.b64encode(data),
    ],
    ids=["plain", "MIME", "MIME with CRLF", "URL-safe", "no padding", "newline", "data URL", "data URL with parameter"],
)
def test_every_unambiguous_spelling_is_read(write, n_bytes):
    data = bytes(index * 251 % 256 for index in range(n_bytes))
    assert decoded(as_body(write(data).decode()), 4 * MIB) == [data]


@pytest.mark.parametrize("escaped", [rb"\u002bw\u003d\u003D", rb"+w\u003d=", rb"\u002Bw=="])
def test_escapes_of_json_are_read(escaped):
    assert decoded(rb'{"images":[{"b64":"\/9j4' + escaped + b'"}]}') == [base64.b64decode(b"/9j4+w==")]


def test_a_byte_order_mark_before_the_json_is_skipped():
    assert decoded(b"\xef\xbb\xbf" + as_body("AAAA")) == [bytes(3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AA!A", r"images\[1\].b64: expected base64, found '!' at position 2."),
        ("AA=A", "found '=' at position 2"),
        ("AAAAAA===", "found '=' at position 6"),
        ("AA\u00e9A", r"found '\\xe9' at position 2"),
        ("AAA\u20ac", r"found '\\u20ac' at position 3"),
        ("AA\0A", r"found '\\x00' at position 2"),
        ("https://example.org/a.png", "found ':' at position 5. Image URLs are not supported."),
        ("data:text/plain;base64,AAAA", "found ':' at position 4"),
        ("data:image/png,AAAA", "found ':' at position 4"),
        ("data:image/png;base64,AA?A", "found '\\?' at position 24"),
        ("AAAAA", "an incomplete group of 4 characters"),
    ],
)
def test_what_is_not_base64_is_named_with_its_image_and_position(text, message):
    with pytest.raises(ImageRejectedError, match=message) as refused:
        decoded(as_body("AAAA", text))
    assert refused.value.code == "image_base64"


def test_a_string_longer_than_any_allowed_image_is_too_large():
    with pytest.raises(ImageTooLargeError, match="the limit is 1000"):
        decoded(as_body("A" * 3000), 1000)


def test_too_many_images_are_one_more_than_allowed():
    images = list(parse_images(as_body(*["AAAA"] * 40), Base64Image, 3, "..."))
    assert len(images) == 4
    assert all(isinstance(image.b64, msgspec.Raw) for image in images)
