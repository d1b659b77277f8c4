"""Checkpoints: replaced as a whole, tied to their run, and never resumed when damaged."""

import io
import random

import pytest
import torch

from training.checkpoint import load_checkpoint, save_checkpoint
from training.errors import CheckpointError

IDENTITY = {"recipe": "sha256:ab", "data": "sha256:cd"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "flowers.safetensors.checkpoint"


def state(step=3):
    return {"step": step, "prompts": torch.arange(60.0).reshape(3, 20), "nested": {"rates": [0.1, 0.2]}}


def test_what_was_saved_is_loaded(path):
    save_checkpoint(path, IDENTITY, state())
    loaded = load_checkpoint(path, IDENTITY)
    assert torch.equal(loaded.pop("prompts"), state()["prompts"])
    assert loaded == {"step": 3, "nested": {"rates": [0.1, 0.2]}}


def test_without_a_file_there_is_nothing_to_resume(path):
    assert load_checkpoint(path, IDENTITY) is None


def test_a_checkpoint_of_another_run_is_rejected_with_what_differs(path):
    save_checkpoint(path, IDENTITY, state())
    with pytest.raises(CheckpointError, match="another run: data differ"):
        load_checkpoint(path, IDENTITY | {"data": "sha256:ef"})


def test_a_flipped_bit_is_detected_wherever_it_is(path):
    save_checkpoint(path, IDENTITY, state())
    data, dice = path.read_bytes(), random.Random(0)  # noqa: S311
    for bit in dice.sample(range(8 * len(data)), 400):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="delete it to start over"):
            load_checkpoint(path, IDENTITY)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_is_detected(path, share):
    save_checkpoint(path, IDENTITY, state())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="delete it to start over"):
        load_checkpoint(path, IDENTITY)


def test_a_checkpoint_of_an_earlier_release_is_resumed(path):
    buffer = io.BytesIO()
    torch.save({"identity": IDENTITY, "state": state()}, buffer)
    path.parent.mkdir()
    path.write_bytes(buffer.getvalue())
    assert load_checkpoint(path, IDENTITY)["step"] == 3
