import io
import zlib

from PIL import Image

from benchmarks.attacks import attacks, chunk_bomb, pixel_flood, scan_bomb


def test_the_scan_bomb_is_a_jpeg_with_that_many_scans():
    data = scan_bomb(64, 100)
    assert data.count(b"\xff\xda") == 100
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (64, 64)
        image.load()


def test_the_chunk_bomb_is_a_sound_png_with_that_many_chunks():
    data = chunk_bomb(1_000)
    assert data.count(b"caSp" + zlib.crc32(b"caSp").to_bytes(4, "big")) == 1_000
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.size == (8, 8)


def test_the_pixel_flood_is_a_small_body_of_large_pictures():
    data = pixel_flood(500, 3)
    assert len(data) < 1_000
    assert data.count(b"RIFF") == 3
    with Image.open(io.BytesIO(data[data.index(b"RIFF") :])) as image:
        assert image.size == (500, 500)


def test_every_attack_has_a_body_and_clients():
    for attack in attacks():
        assert attack.body
        assert attack.n_clients > 1
        assert attack.n_missing == 0 or attack.name.startswith(("256", "40"))
