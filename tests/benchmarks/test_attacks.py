import asyncio
import io
import zlib
from types import SimpleNamespace

import pytest
from PIL import Image

from benchmarks.attacks import (
    CLASSIFY,
    JSON,
    MIB,
    UPLOAD,
    Attack,
    Phase,
    attack_once,
    attacks,
    chunk_bomb,
    pixel_flood,
    scan_bomb,
)
from service.settings import Settings


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


@pytest.mark.parametrize("n_missing", [0, 7])
def test_an_attack_sends_its_body_and_waits_until_the_server_closes(n_missing):
    received, phase = [], Phase("test")

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        received.extend((head.decode(), await reader.readexactly(3 * MIB)))
        await asyncio.sleep(0.1)
        writer.close()

    async def run():
        async with await asyncio.start_server(answer, "127.0.0.1") as listening:
            host, port = listening.sockets[0].getsockname()
            attack = Attack("test", 1, CLASSIFY, JSON, bytes(3 * MIB), n_missing)
            await attack_once(SimpleNamespace(url=f"http://{host}:{port}", domains=["good", "attacked"]), attack, phase)

    asyncio.run(run())
    head, body = received
    assert head.startswith("POST /classify/attacked HTTP/1.1\r\n")
    assert f"Content-Length: {3 * MIB + n_missing}\r\n" in head
    assert body == bytes(3 * MIB)
    assert phase.n_attacks == 1
    assert [stalled_s >= 0.1 for stalled_s in phase.stalled_s] == [True] * bool(n_missing)


def test_every_attack_is_within_the_size_limits_of_the_server():
    limits = {CLASSIFY: Settings().max_request_bytes, UPLOAD: Settings().max_bundle_bytes}
    for attack in attacks():
        assert 0 < len(attack.body) + attack.n_missing <= limits[attack.path], attack.name
