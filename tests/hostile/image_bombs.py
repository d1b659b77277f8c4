"""Image files that take the most CPU time and memory to decode among those within the limits.

`python -m tests.hostile.image_bombs` prints what each takes, in a process of its own.
"""

import io
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 5_000
"""25 million pixels, the default limit."""
MAX_BYTES = 10 * 1024 * 1024
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PAETH = b"\4"


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode="RGB"):
    return Image.new(mode, (SIDE, SIDE), 77 if mode == "L" else (77,) * len(mode))


def tiled(mode="RGB", tile=61):
    """Noise that repeats, so that it compresses well."""
    rng = np.random.default_rng(1)
    one = rng.integers(0, 256, (tile, tile, len(mode)), dtype=np.uint8)
    n_tiles = -(-SIDE // tile)
    return Image.fromarray(np.tile(one, (n_tiles, n_tiles, 1))[:SIDE, :SIDE], mode)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*, colour, depth=8, is_interlaced=False, period=1_021, extra=b"", side=SIDE):
    """A PNG of noise with a short period, each row with the Paeth filter."""
    bits = depth * CHANNELS[colour]
    noise = np.random.default_rng(2).integers(0, 256, period, dtype=np.uint8).tobytes()
    deflate = zlib.compressobj(1)
    pixels = []
    for left, top, dx, dy in ADAM7 if is_interlaced else ((0, 0, 1, 1),):
        n_bytes = (-(-(side - left) // dx) * bits + 7) // 8
        row = PAETH + (noise * (n_bytes // period + 1))[:n_bytes]
        pixels += [deflate.compress(row) for _ in range(-(-(side - top) // dy))]
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, is_interlaced)
    idat = chunk(b"IDAT", b"".join(pixels) + deflate.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + idat + chunk(b"IEND", b"")


def png_of_chunks():
    """As many chunks as are allowed, each with a few bytes of the pixels."""
    data = png(colour=2, period=61)
    at = data.index(b"IDAT") - 4
    idat = data[at + 8 : -16]
    n_bytes = len(idat) // 19_000 + 1
    parts = [chunk(b"IDAT", idat[start : start + n_bytes]) for start in range(0, len(idat), n_bytes)]
    return data[:at] + b"".join(parts) + data[-12:]


def jpeg_of_scans(n_scans, mode="RGB", side=SIDE):
    """A progressive JPEG whose last scan, a refinement of all coefficients, is repeated."""
    data = encode(flat(mode).resize((side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (n_scans - data.count(b"\xff\xda") + 1) + data[-2:]


def jpeg_of_exif():
    """Many segments of EXIF, which Pillow joins one by one."""
    segment = b"\xff\xe1" + struct.pack(">H", 40_008) + b"Exif\0\0" + bytes(40_000)
    data = encode(flat(), "JPEG")
    return data[:2] + segment * 240 + data[2:]


def jpeg_of_resources():
    """Photoshop segments full of the smallest resources."""
    resource_block = b"8BIM\x03\xe8\0\0\0\0\0\0"
    body = b"Photoshop 3.0\0" + resource_block * 5_400
    segment = b"\xff\xed" + struct.pack(">H", len(body) + 2) + body
    data = encode(flat(), "JPEG")
    return data[:2] + segment * 155 + data[2:]


def jpeg_of_comments():
    """Two million empty comments between two scans."""
    data = encode(flat(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + b"\xff\xfe\0\2" * 2_000_000 + data[last:]


def jpeg_of_marks():
    """Entropy-coded data full of stuffed bytes, and too many accidental marks of scans after the image."""
    data = encode(flat(), "JPEG")
    return data[:-2] + b"\xff\0" * 4_900_000 + b"\xff\xd9" + b"\xff\xda" * 200


def turned(orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def webp_noise(quality):
    noise = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), "WEBP", quality=quality, method=0)


class Bits:
    """A bit stream, least significant bit first."""

    def __init__(self):
        self.n, self.n_bits, self.done = 0, 0, bytearray()

    def put(self, value, n_bits):
        self.n |= value << self.n_bits
        self.n_bits += n_bits
        while self.n_bits >= 8:
            self.done.append(self.n & 255)
            self.n, self.n_bits = self.n >> 8, self.n_bits - 8

    def data(self):
        return bytes(self.done) + bytes([self.n & 255])


def webp_of_codes(side=1_024):
    """A lossless WebP with 65,536 groups of Huffman codes of one symbol; libwebp has a table of 1 KiB for each code."""
    bits = Bits()
    for value, n_bits in ((0x2F, 8), (side - 1, 14), (side - 1, 14), (0, 4)):
        bits.put(value, n_bits)
    bits.put(0, 2)  # no transforms, no colour cache
    precision = next(one for one in range(9, 1, -1) if (-(-side // 2**one)) ** 2 >= 65_536)
    n_blocks = (-(-side // 2**precision)) ** 2
    bits.put(1, 1)  # an image of the numbers of groups, as red and green
    bits.put(precision - 2, 3)
    bits.put(0, 1)
    for n_symbols in (280, 256):
        bits.put(0, 1)
        bits.put(12 - 4, 4)
        for length in (0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1):
            bits.put(length, 3)
        bits.put(0, 1)
        for symbol in range(n_symbols):
            bits.put(int(symbol < 256), 1)
    for _ in range(3):
        bits.put(1, 4)
    reversed_bits = [int(f"{value:08b}"[::-1], 2) for value in range(256)]
    for block in range(n_blocks):
        number = block % 65_536
        bits.put(reversed_bits[number & 255], 8)
        bits.put(reversed_bits[number >> 8], 8)
    for _ in range(65_536 * 5):
        bits.put(1, 4)
    data = bits.data() + b"\0"
    data += b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(data) + 12) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


BOMBS = {
    "JPEG, 20 scans": lambda: jpeg_of_scans(20),
    "JPEG, 20 scans, grey": lambda: jpeg_of_scans(20, "L"),
    "JPEG, 20 scans, CMYK, turned": lambda: jpeg_of_scans(20, "CMYK"),
    "JPEG, 100 scans at 5 million pixels": lambda: jpeg_of_scans(100, side=2_236),
    "JPEG, tiled noise, turned": lambda: encode(tiled(), "JPEG", quality=50, exif=turned()),
    "JPEG, 240 EXIF segments": jpeg_of_exif,
    "JPEG, Photoshop resources": jpeg_of_resources,
    "JPEG, comments": jpeg_of_comments,
    "JPEG, stuffed bytes": jpeg_of_marks,
    "PNG, RGBA": lambda: png(colour=6),
    "PNG, RGBA, turned": lambda: png(colour=6, extra=chunk(b"eXIf", turned().tobytes()[6:])),
    "PNG, RGBA, interlaced": lambda: png(colour=6, is_interlaced=True),
    "PNG, RGB with a transparent colour": lambda: png(colour=2, extra=chunk(b"tRNS", bytes(6))),
    "PNG, 16-bit RGBA": lambda: png(colour=6, depth=16, side=3_535),
    "PNG, 16-bit RGBA, interlaced": lambda: png(colour=6, depth=16, is_interlaced=True, side=3_535),
    "PNG, 16-bit grey": lambda: png(colour=0, depth=16),
    "PNG, 19,000 chunks": png_of_chunks,
    "WEBP, lossless, flat": lambda: encode(flat("RGBA"), "WEBP", lossless=True),
    "WEBP, lossless, tiled noise": lambda: encode(tiled("RGBA"), "WEBP", lossless=True, method=0, quality=0),
    "WEBP, 65,536 groups of codes": webp_of_codes,
    "WEBP, 65,536 groups of codes, 25 million pixels": lambda: webp_of_codes(SIDE),
    "WEBP, lossy, noise": lambda: webp_noise(5),
    "WEBP, lossy, with alpha": lambda: encode(tiled("RGBA"), "WEBP", quality=5, method=0),
}


def measure(data, preprocess="exact"):
    """CPU seconds of this thread and mebibytes of resident memory that decoding a file takes here.

    `preprocess` is a mode, or `thumbnail`.
    """
    from service.errors import ImageRejectedError
    from service.images.decoder import open_image, thumbnail_of
    from service.images.preprocessing import preprocessing
    from service.settings import Settings

    values = {"interpolation": "bicubic", "resize_mode": "shortest"}
    is_thumbnail = preprocess == "thumbnail"
    way = None if is_thumbnail else preprocessing(preprocess, 224, values)

    def decode(file):
        if is_thumbnail:
            open_image(file, Settings(), thumbnail_of)
        else:
            open_image(file, Settings(), way.decode)[0]()

    decode(encode(Image.new("RGB", (300, 300)), "PNG"))
    before, began_s = peak_mebibytes(), time.thread_time()
    try:
        decode(data)
        outcome = "decoded"
    except ImageRejectedError as error:
        outcome = error.code
    cpu_s = time.thread_time() - began_s
    return cpu_s, peak_mebibytes() - before, outcome


def peak_mebibytes():
    """Largest resident memory of this process; `ru_maxrss` would include that of its parent."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure_apart(data, preprocess="exact"):
    """`measure` in a new process: CPU seconds, mebibytes, and `decoded` or the code of the error."""
    command = [sys.executable, "-m", "tests.hostile.image_bombs", preprocess]
    printed = subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode()
    cpu_s, mebibytes, outcome = printed.split()
    return float(cpu_s), float(mebibytes), outcome


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.stdout.write(" ".join(map(str, measure(sys.stdin.buffer.read(), sys.argv[1]))))
    else:
        for name, make in BOMBS.items():
            bomb = make()
            for form in ("exact", "fast", "thumbnail"):
                spent_s, grown, result = measure_apart(bomb, form)
                size = f"{len(bomb) / 1e6:.1f} MB"
                sys.stdout.write(f"{name} ({size}), {form}: {spent_s:.2f} s, {grown:.0f} MiB, {result}\n")
