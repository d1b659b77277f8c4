"""One image of a request that fails on our side: its neighbours are answered."""

import pytest
import torch

from service.images.decoder import open_image
from tests.service.fakes import picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True


async def test_a_picture_without_device_memory_is_503_with_retry_after_and_its_neighbours_are_answered(serve, model):
    rank = model.rank

    def full_of_blue(pixels, stacks, top_ks, **options):
        if (pixels[:, 2].float().mean(dim=(1, 2)) > 200).any():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rank(pixels, stacks, top_ks, **options)

    colours = ["red", "green", "blue", "red"]
    files = [("images", (f"{n}.png", picture(colour))) for n, colour in enumerate(colours)]
    async with serve() as client:
        model.rank = full_of_blue
        together = await client.post("/classify/paint?top_k=1", files=files)
        alone = await client.post("/classify/paint", content=picture("blue"))
    results = together.json()["results"]
    assert [one["predictions"][0]["label"] for one in results if not one["error"]] == ["red", "green", "red"]
    assert (results[2]["error"]["code"], results[2]["error"]["retry_after_s"]) == ("gpu_memory", 1)
    assert (alone.status_code, alone.json()["code"], alone.headers["retry-after"]) == (503, "gpu_memory", "1")


async def test_an_unexpected_error_in_one_picture_leaves_the_others(serve, monkeypatch):
    def explode_for_blue(data, *given):
        if data == picture("blue"):
            raise KeyError("/etc/passwd at 0x7f00")
        return open_image(data, *given)

    monkeypatch.setattr("service.images.decoder.open_image", explode_for_blue)
    files = [("images", ("1.png", picture("blue"))), ("images", ("2.png", picture("red")))]
    async with serve() as client:
        answer = await client.post("/classify/paint", files=files)
        alone = await client.post("/classify/paint", content=picture("blue"))
    first, second = answer.json()["results"]
    assert (answer.status_code, first["error"]["code"], second["predictions"][0]["label"]) == (200, "internal", "red")
    assert (alone.status_code, alone.json()["code"]) == (500, "internal")
    assert "passwd" not in answer.text + alone.text
