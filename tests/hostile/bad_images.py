"""More than 1,000 image files that must be refused, each with its status and code, from one seed."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

from tests.hostile.cases import refused
from tests.hostile.image_bombs import chunk, encode

MAGIC = b"\x89PNG\r\n\x1a\n"
KINDS = ("JPEG", "PNG", "WEBP")
DAMAGED, TRUNCATED = "image_undecodable", "image_truncated"


def photo(kind, seed=0, size=(48, 40), **options):
    """Noise, so that the pixels are most of the file."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), kind, **options)


def ihdr(width, height, depth=8, colour=2, compression=0, filtering=0, interlace=0):
    return struct.pack(">IIBBBBB", width, height, depth, colour, compression, filtering, interlace)


def png(header, *chunks):
    """A PNG of one header and any chunks."""
    return MAGIC + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def one_idat(body=b"\0"):
    return chunk(b"IDAT", zlib.compress(body))


def with_size(kind, width, height):
    """A small file whose header has another size."""
    if kind == "PNG":
        return png(ihdr(width, height), one_idat())
    if kind == "JPEG":
        data = bytearray(photo("JPEG"))
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
        return bytes(data)
    data = bytearray(photo("WEBP", quality=50))
    at = data.index(b"VP8 ") + 14
    data[at : at + 4] = struct.pack("<HH", width, height)
    return bytes(data)


def truncations(rng):
    for kind in KINDS:
        data = photo(kind)
        first = 12 if kind == "WEBP" else 3  # before it the file has no format
        for end in rng.sample(range(first, int(len(data) * 0.95)), 110):
            yield data[:end]


def short_files(rng):
    yield b""
    yield from (bytes(n) for n in (1, 7, 8, 63, 64, 4000))
    yield from (photo("PNG")[:n] for n in range(1, 8))
    yield from (rng.randbytes(n) for n in range(1, 8))
    yield from (b"\xff\xd8"[:n] for n in (1, 2))


def other_formats(rng):
    image = Image.new("RGB", (9, 7), "navy")
    for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "EPS", "ICNS", "JPEG2000"):
        file = io.BytesIO()
        image.save(file, kind)
        yield file.getvalue()
    yield from (magic + rng.randbytes(300) for magic in (b"PK\3\4", b"\x7fELF", b"%PDF-1.7", b"GIF89a", b"BM", b"8BPS"))
    yield from (
        magic + rng.randbytes(300) for magic in (b"II*\0", b"MM\0*", b"\0\0\0\x20ftypavif", b"\xff\x0a", b"qoif")
    )
    yield from (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!doctype html>" * 9, b'{"images": []}' * 9)
    yield from (b"RIFF" + struct.pack("<I", 300) + kind + rng.randbytes(300) for kind in (b"WAVE", b"AVI ", b"WEBp"))
    yield from (b" " + photo(kind) for kind in KINDS)  # one byte in front
    yield from (photo(kind)[1:] for kind in KINDS)
    yield from (b"MZ" + rng.randbytes(200 + n) for n in range(40))


def bombs(rng):
    for kind in KINDS:
        for _ in range(14):
            width, height = rng.randrange(5_001, 16_000), rng.randrange(5_001, 16_000)
            yield with_size(kind, width, height)
    yield from (png(ihdr(side, 1_000), one_idat()) for side in (16_385, 20_000, 2**31 - 1))
    yield from (png(ihdr(4_000, side), one_idat()) for side in (16_385, 65_535, 2**31 - 1))
    yield png(ihdr(5_001, 5_000), one_idat())
    yield from (png(ihdr(4_000, 4_000, depth=16, colour=colour), one_idat()) for colour in (2, 6))


def thin(rng):
    for kind in KINDS:
        for _ in range(8):
            short = rng.randrange(1, 40)
            long = rng.randrange(21 * short, 26 * short)
            yield with_size(kind, short, long)
            yield with_size(kind, long, short)
    yield photo("PNG", size=(21, 1))


def no_pixels():
    for kind in KINDS:
        yield from (with_size(kind, 0, 10), with_size(kind, 10, 0), with_size(kind, 0, 0))


def wrong_headers():
    """PNG headers with values that the format does not have."""
    yield from (
        png(ihdr(8, 8, depth=depth), one_idat(bytes(400))) for depth in (0, 1, 2, 3, 4, 5, 7, 9, 15, 17, 32, 255)
    )
    yield from (png(ihdr(8, 8, colour=colour), one_idat(bytes(400))) for colour in (1, 5, 7, 8, 128, 255))
    yield from (png(ihdr(8, 8, depth=depth, colour=3), one_idat(bytes(400))) for depth in (0, 3, 16))
    yield from (png(ihdr(8, 8, filtering=value), one_idat(bytes(400))) for value in (1, 64, 255))


def short_headers():
    """PNG headers with too few bytes."""
    yield from (png(ihdr(8, 8)[:n], one_idat(bytes(400))) for n in range(13))


def wrong_checksums(rng):
    """A bit flipped in the header of a PNG or in its checksum."""
    data = photo("PNG")
    for bit in rng.sample(range(8 * 8, 8 * 17), 40):  # from the bit depth to the end of the checksum
        flipped = bytearray(data)
        flipped[16 + bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def wrong_chunks(rng):
    """PNGs whose chunks are missing, unordered or damaged where the pixels need them."""
    data = photo("PNG")
    head, idat = ihdr(8, 8), one_idat(bytes(25 * 8))
    yield png(head)  # no pixels
    yield MAGIC + idat + chunk(b"IHDR", head) + chunk(b"IEND", b"")
    yield MAGIC + chunk(b"IEND", b"")
    yield png(head, chunk(b"IDAT", b""))
    yield from (png(head, chunk(b"IDAT", rng.randbytes(n))) for n in range(1, 40, 3))
    yield from (png(head, one_idat(bytes(n))) for n in range(0, 24 * 8, 16))  # too few rows
    palette = Image.new("P", (9, 9))
    palette.putpalette(list(range(90)))
    for at in range(4):
        for name in (b"PLTE", b"IHDR"):
            flipped = bytearray(encode(palette, "PNG"))
            where = flipped.index(name)
            end = where + 4 + int.from_bytes(flipped[where - 4 : where], "big")
            flipped[end + at] ^= 1
            yield bytes(flipped)
    at = data.index(b"IDAT") + 4
    for value in range(16):
        flipped = bytearray(data)
        flipped[at] = value * 16 + 7 if value != 7 else 0x70  # zlib's header
        flipped[at + 1] ^= 0x20  # and a preset dictionary
        yield bytes(flipped)


def animations():
    for kind in ("PNG", "WEBP"):
        for n_frames in range(2, 22):
            frames = [Image.new("RGB", (8, 8), (n_frames, 12 * n, 0)) for n in range(n_frames)]
            yield encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=40)


def scan_bombs():
    for n_scans in (*range(101, 121), 200, 500, 1_000, 2_000):
        data = photo("JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        yield data[:last] + data[last:-2] * n_scans + data[-2:]
    for n_segments in (251, 252, 300, 1_000):
        data = photo("JPEG")
        yield data[:2] + b"\xff\xfe\0\4ab" * n_segments + data[2:]


def chunk_bombs():
    data = photo("PNG")
    webp = encode(Image.new("RGB", (8, 8)), "WEBP", lossless=True, exif=b"Exif\0\0II*\0")
    for n_chunks in (20_000, 20_001, 30_000, 60_000):
        yield data[:33] + chunk(b"caSp", b"") * n_chunks + data[33:]
        body = webp[12:] + b"caSp\0\0\0\0" * n_chunks
        yield b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def segment(data, marker):
    """Position of a JPEG segment's first byte after its length."""
    return data.index(bytes((0xFF, marker))) + 4


def damaged_jpegs(rng):
    data = photo("JPEG")
    for marker in (0xC0, 0xC4, 0xDA):  # frame, Huffman tables, scan
        at = segment(data, marker) - 4
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker != 0xC4:  # libjpeg has default tables
            yield data[:at] + data[at + 2 + length :]  # missing
        for value in (0, 1, 3, 5, 9):
            yield data[: at + 2] + struct.pack(">H", value) + data[at + 4 :]
    frame = segment(data, 0xC0)
    for offset, values in ((0, (0, 1, 7, 9, 13, 16, 255)), (5, (0, 2, 5, 6, 255))):  # precision, components
        yield from (data[: frame + offset] + bytes([value]) + data[frame + offset + 1 :] for value in values)
    for value in (0x00, 0x01, 0x10, 0x50, 0xFF):  # sampling factors
        yield data[: frame + 7] + bytes([value]) + data[frame + 8 :]
    for kind in (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF):  # frames that no browser reads
        yield data[: frame - 3] + bytes([kind]) + data[frame - 2 :]
    for n in range(3, 60):
        yield b"\xff\xd8\xff" + rng.randbytes(n)
    yield b"\xff\xd8\xff\xd9" + bytes(60)


def damaged_webps(rng):
    for options in ({"quality": 60}, {"lossless": True}):
        data = photo("WEBP", **options)
        for _ in range(20):
            yield data[:12] + rng.randbytes(4) + data[16:]  # the name of the first chunk
        signature = 20 if options.get("lossless") else 23
        for value in rng.sample(range(256), 20):
            if value != data[signature]:
                yield data[:signature] + bytes([value]) + data[signature + 1 :]
    yield from (b"RIFF" + struct.pack("<I", n + 4) + b"WEBP" + rng.randbytes(n) for n in range(0, 60, 2))


def canvases(rng):
    """WebP files whose canvas is not that of their pixels."""
    data = encode(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "WEBP", lossless=True, exif=b"Exif\0\0II*\0")
    at = data.index(b"VP8X") + 12
    for _ in range(30):
        width, height = rng.randrange(9, 60), rng.randrange(9, 60)
        yield data[:at] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + data[at + 6 :]


def noise_after_magic(rng):
    for n in range(60):
        yield MAGIC + rng.randbytes(20 + 5 * n)


def swapped(rng):
    """The start of one format and the pixels of another."""
    for _ in range(30):
        one, two = rng.sample(KINDS, 2)
        at = rng.randrange(14, 30)
        yield photo(one)[:at] + photo(two)[at:]


def bad_images(seed=0):
    """The corpus."""
    rng = random.Random(seed)  # noqa: S311
    return [
        *refused("truncated", truncations(rng), 422, TRUNCATED, DAMAGED),
        *refused("short", short_files(rng), 422, DAMAGED),
        *refused("other format", other_formats(rng), 415, "image_format"),
        *refused("too many pixels", bombs(rng), 413, "image_pixels"),
        *refused("thin", thin(rng), 422, "image_aspect"),
        *refused("no pixels", no_pixels(), 422, DAMAGED),
        *refused("PNG header", wrong_headers(), 422, DAMAGED),
        *refused("short PNG header", short_headers(), 422, TRUNCATED),
        *refused("PNG checksum", wrong_checksums(rng), 422, DAMAGED),
        *refused("PNG chunks", wrong_chunks(rng), 422, DAMAGED, TRUNCATED),
        *refused("animated", animations(), 422, "image_animated"),
        *refused("too many scans", scan_bombs(), 422, "image_scans"),
        *refused("too many chunks", chunk_bombs(), 422, "image_chunks"),
        *refused("damaged JPEG", damaged_jpegs(rng), 422, DAMAGED, TRUNCATED),
        *refused("damaged WebP", damaged_webps(rng), 422, DAMAGED, TRUNCATED),
        *refused("wrong canvas", canvases(rng), 422, DAMAGED),
        *refused("noise", noise_after_magic(rng), 422, DAMAGED, TRUNCATED),
        *refused("swapped", swapped(rng), 422, DAMAGED, TRUNCATED, "image_aspect"),
    ]
