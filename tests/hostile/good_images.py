"""More than 200 unusual image files that must be decoded, each with its pixels, from one seed."""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin

from tests.hostile.image_bombs import chunk, encode

ORIENTATION = 0x0112


@dataclass(frozen=True)
class GoodImage:
    """A file, its pixels as uint8 [H, W, 3], and by how much each may differ: 1 where transparency is blended."""

    name: str
    data: bytes
    pixels: np.ndarray
    tolerance: int = 0


def noise(rng, height, width, n_channels=3):
    return rng.integers(0, 256, (height, width, n_channels), dtype=np.uint8)


def grey(values_HW):
    return np.repeat(values_HW[..., None], 3, axis=2)


def blended(rgba_HWC):
    """On white."""
    alpha = rgba_HWC[..., 3:].astype(np.float64) / 255
    return np.rint(rgba_HWC[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def decoded_by_pillow(data):
    """The reference for lossy files: Pillow's own decoder and conversion."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def sizes():
    yield from ((1, 1), (1, 20), (20, 1), (2, 3), (7, 140), (255, 257), (16, 16), (640, 33))


def of_modes(rng):
    for height, width in sizes():
        rgb, rgba = noise(rng, height, width), noise(rng, height, width, 4)
        levels, two = rgb[..., 0], np.stack([rgba[..., 0], rgba[..., 3]], axis=2)
        where = f"{width} x {height}"
        yield GoodImage(f"RGB PNG {where}", encode(Image.fromarray(rgb), "PNG"), rgb)
        yield GoodImage(f"grey PNG {where}", encode(Image.fromarray(levels), "PNG"), grey(levels))
        yield GoodImage(f"RGBA PNG {where}", encode(Image.fromarray(rgba), "PNG"), blended(rgba), 1)
        yield GoodImage(f"grey and alpha PNG {where}", encode(Image.fromarray(two, "LA"), "PNG"),
                        blended(np.concatenate([grey(two[..., 0]), two[..., 1:]], axis=2)), 1)  # fmt: skip
        bits = Image.fromarray(((levels > 127) * 255).astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
        yield GoodImage(f"black and white PNG {where}", encode(bits, "PNG"), grey((levels > 127) * np.uint8(255)))
        deep = rng.integers(0, 65_536, (height, width), dtype=np.uint16)
        yield GoodImage(f"16-bit PNG {where}", encode(Image.fromarray(deep), "PNG"), grey((deep >> 8).astype(np.uint8)))
        palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
        indexed = Image.fromarray(levels, "P")
        indexed.putpalette(palette.tobytes())
        yield GoodImage(f"palette PNG {where}", encode(indexed, "PNG"), palette[levels])
        yield GoodImage(f"lossless WebP {where}", encode(Image.fromarray(rgb), "WEBP", lossless=True, exact=True), rgb)
        clear = encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)
        yield GoodImage(f"lossless WebP with alpha {where}", clear, blended(rgba), 1)
        hidden = rgba.copy()
        hidden[..., 3] = 0
        yield GoodImage(f"invisible PNG {where}", encode(Image.fromarray(hidden), "PNG"), np.full_like(rgb, 255))


def lossy(rng):
    rgb = Image.fromarray(noise(rng, 37, 53))
    for quality in (1, 50, 90, 100):
        for subsampling in (0, 1, 2):
            for progressive in (False, True):
                data = encode(rgb, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
                name = f"JPEG quality {quality} subsampling {subsampling} progressive {progressive}"
                yield GoodImage(name, data, decoded_by_pillow(data))
        data = encode(rgb.convert("L"), "JPEG", quality=quality)
        yield GoodImage(f"grey JPEG {quality}", data, decoded_by_pillow(data))
        data = encode(rgb, "WEBP", quality=quality)
        yield GoodImage(f"lossy WebP {quality}", data, decoded_by_pillow(data))
        data = encode(rgb, "JPEG", quality=quality, restart_marker_blocks=2)
        yield GoodImage(f"JPEG with restarts {quality}", data, decoded_by_pillow(data))
        data = encode(rgb.convert("CMYK"), "JPEG", quality=quality)
        yield GoodImage(f"CMYK JPEG {quality}", data, decoded_by_pillow(data))


def turned(rgb_HWC, orientation):
    """What a viewer shows of stored pixels, from the table of the EXIF standard."""
    shown = rgb_HWC.swapaxes(0, 1) if orientation > 4 else rgb_HWC
    flips_rows, flips_columns = orientation in {3, 4, 7, 8}, orientation in {2, 3, 6, 7}
    return shown[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1]


def orientations(rng):
    for orientation in range(1, 9):
        rgb, exif = noise(rng, 12, 19), Image.Exif()
        exif[ORIENTATION] = orientation
        for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
            data = encode(Image.fromarray(rgb), kind, exif=exif, **options)
            yield GoodImage(f"{kind} orientation {orientation}", data, turned(rgb, orientation))
        data = encode(Image.fromarray(rgb), "JPEG", exif=exif, quality=95)
        yield GoodImage(f"JPEG orientation {orientation}", data, turned(decoded_by_pillow(data), orientation))


def with_metadata(rng):
    rgb = noise(rng, 20, 24)
    plain = {kind: encode(Image.fromarray(rgb), kind, **options) for kind, options in KINDS.items()}
    for kind, data in plain.items():
        shown = decoded_by_pillow(data)
        for n in (1, 7, 100, 5_000):
            yield GoodImage(f"{kind} with {n} bytes behind it", data + rng.bytes(n), shown)
    jpeg, shown = plain["JPEG"], decoded_by_pillow(plain["JPEG"])
    for n in (1, 20, 200):
        yield GoodImage(f"JPEG with {n} comments", jpeg[:2] + b"\xff\xfe\0\6abcd" * n + jpeg[2:], shown)
    for name in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"http://ns.adobe.com/xap/1.0/\0<x"):
        segment = b"\xff\xe1" + struct.pack(">H", len(name) + 2) + name
        yield GoodImage(f"JPEG with the segment {name[:9]!r}", jpeg[:2] + segment + jpeg[2:], shown)
    png = plain["PNG"]
    for name in (b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"caSp", b"sRGB"):
        for n in (0, 3, 1_000, 2_000_000):
            yield GoodImage(f"PNG with {n} bytes of {name.decode()}", png[:33] + chunk(name, bytes(n)) + png[33:], rgb)
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 40_000_000, zip=True)
    yield GoodImage("PNG with 40 MB of text", encode(Image.fromarray(rgb), "PNG", pnginfo=info), rgb)
    frames = [Image.fromarray(noise(rng, 20, 24)) for _ in range(3)]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    yield GoodImage("multi-picture JPEG", data, decoded_by_pillow(data))


KINDS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True, "exact": True}}


def good_images(seed=0):
    """The corpus."""
    rng = np.random.default_rng(seed)
    return [*of_modes(rng), *lossy(rng), *orientations(rng), *with_metadata(rng)]
