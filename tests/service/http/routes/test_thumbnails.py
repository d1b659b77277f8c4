"""Thumbnails of examples over HTTP."""

import io

import pytest
from PIL import Image

from tests.service.fakes import picture
from tests.service.images.test_decoder import encode

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True
URL = "/domains/paint/examples"


async def test_a_thumbnail_is_an_image_that_only_the_client_may_cache(serve):
    async with serve() as client:
        await client.post(URL, files=[("red", ("a.png", picture("red", (640, 480))))])
        answer = await client.get(f"{URL}/1/thumbnail")
        head = await client.head(f"{URL}/1/thumbnail")
    assert answer.headers["content-type"] == "image/webp"
    assert answer.content[8:12] == b"WEBP"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "private, no-cache"
    assert (head.status_code, head.content) == (200, b"")


async def test_a_cached_thumbnail_is_valid_until_the_id_is_another_image(serve):
    async with serve() as client:
        await client.post(URL, files=[("red", ("a.png", picture("red", (640, 480))))])
        known = {"If-None-Match": (await client.get(f"{URL}/1/thumbnail")).headers["etag"]}
        unchanged = await client.get(f"{URL}/1/thumbnail", headers=known)
        client.context.examples.close()
        for path in client.context.store.root.glob("examples.sqlite3*"):
            path.unlink()
        await client.post(URL, files=[("red", ("a.png", picture("blue", (640, 480))))])
        changed = await client.get(f"{URL}/1/thumbnail", headers=known)
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert changed.status_code == 200
    assert changed.content


async def test_a_rotated_photograph_has_an_upright_thumbnail(serve):
    exif = Image.Exif()
    exif[0x0112] = 6
    async with serve() as client:
        await client.post(URL, files=[("red", ("a.jpg", encode(Image.new("RGB", (64, 32)), "JPEG", exif=exif)))])
        thumbnail = Image.open(io.BytesIO(client.context.examples.thumbnail("paint", 1)))
    assert thumbnail.size == (32, 64)
