"""Checkpoint files: finding them, and reading them without executing code."""

import hashlib
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from tests.training.importing.foreign import save_dassl
from training.errors import ImportFormatError
from training.importing.checkpoint_file import MAX_CHECKPOINT_BYTES, find_checkpoint, read_checkpoint

STATE = {"ctx": torch.arange(8.0).reshape(2, 4), "counts": torch.tensor(3)}


def refusal(function, *arguments):
    with pytest.raises(ImportFormatError) as caught:
        function(*arguments)
    return str(caught.value)


def test_a_dassl_file_with_a_pickled_scheduler_is_read(tmp_path):
    path = save_dassl(tmp_path / "model.pth.tar-7", STATE, epoch=7)
    with pytest.raises(pickle.UnpicklingError, match="CosineAnnealingLR"):
        torch.load(path, weights_only=True)  # what makes the stand-ins necessary
    checkpoint = read_checkpoint(path)
    assert checkpoint.epoch == 7
    assert checkpoint.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(checkpoint.tensors) == {"ctx", "counts"}
    assert torch.equal(checkpoint.tensors["ctx"], STATE["ctx"])


def test_reading_does_not_change_torchs_safe_globals(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(save_dassl(tmp_path / "model.pth.tar-7", STATE))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("kind", ["bare", "old format", "safetensors", "data parallel"])
def test_bare_state_dicts_of_all_formats_are_read(tmp_path, kind):
    path = tmp_path / ("state.safetensors" if kind == "safetensors" else "state.pt")
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        state = {f"module.{name}": value for name, value in STATE.items()} if kind == "data parallel" else STATE
        torch.save(state, path, _use_new_zipfile_serialization=kind != "old format")
    checkpoint = read_checkpoint(path)
    assert checkpoint.epoch is None
    assert set(checkpoint.tensors) == set(STATE)
    assert all(torch.equal(checkpoint.tensors[name], value) for name, value in STATE.items())


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["state_dict", "optimizer"])
@pytest.mark.parametrize("is_archive", [True, False])
def test_a_pickle_that_needs_code_is_rejected_without_running_it(tmp_path, place, is_archive):
    content = {"state_dict": dict(STATE), "epoch": 1, "optimizer": {}}
    content[place]["x"] = Command(tmp_path / "ran")
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=is_archive)
    message = refusal(read_checkpoint, tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    assert "contains objects other than tensors" in message
    assert "mkdir" in message
    assert "save only its state_dict" in message


def test_an_object_with_a_placeholder_is_not_restored(tmp_path):
    class Schedule:
        def __reduce__(self):
            return torch.optim.lr_scheduler.CosineAnnealingLR, (Command(tmp_path / "ran"), 5)

    torch.save({"state_dict": STATE, "scheduler": Schedule()}, tmp_path / "evil.pt")
    assert "mkdir" in refusal(read_checkpoint, tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        b"PK\x03\x04 cut short",
        b"\x80\x02}q\x00.",
        pickle.dumps([1, 2], protocol=2),
        b"\x80\x02c",
    ],
)
def test_files_that_are_not_checkpoints_are_rejected(tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    assert str(tmp_path / "file.pt") in refusal(read_checkpoint, tmp_path / "file.pt")
    (tmp_path / "file.safetensors").write_bytes(content)
    assert str(tmp_path / "file.safetensors") in refusal(read_checkpoint, tmp_path / "file.safetensors")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html></html>", "an HTML or XML page"),
    ],
)
def test_pointers_and_pages_in_place_of_a_checkpoint_are_named(tmp_path, content, says):
    (tmp_path / "file.pt").write_bytes(content)
    assert says in refusal(read_checkpoint, tmp_path / "file.pt")


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated_files_are_rejected(tmp_path, share):
    path = save_dassl(tmp_path / "model.pth.tar-1", STATE)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "an incomplete archive; download it again" in refusal(read_checkpoint, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "args": "x"}, "a dense tensor 'epoch', found a int"),
        ({"state_dict": [1]}, "contains no state dict"),
        ({}, "contains no state dict"),
        ([STATE], "found list"),
        ({1: torch.ones(1)}, "contains no state dict"),
        ({"ctx": torch.ones(2).to_sparse()}, "found a torch.sparse_coo tensor on cpu"),
        ({"ctx": torch.ones(2, dtype=torch.complex64)}, "found torch.complex64 [2]"),
        ({"ctx": torch.ones(2, device="meta")}, "tensor on meta"),
        ({"ctx": torch.ones(1).expand(10**6, 10**6)}, "[1000000, 1000000] in a file of"),
        ({"ctx": torch.ones(1), "module.ctx": torch.ones(1)}, "contains 'ctx' twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_state_dict_contains_only_dense_tensors_by_name(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pt")
    assert message in refusal(read_checkpoint, tmp_path / "file.pt")


def test_compressed_records_are_rejected(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02}." + b"\0" * 10**6)
    assert "compressed record 'bomb/data.pkl'" in refusal(read_checkpoint, path)


def test_a_file_above_the_limit_is_rejected_before_it_is_read(tmp_path):
    path = tmp_path / "huge.pt"
    path.touch()
    os.truncate(path, MAX_CHECKPOINT_BYTES + 1)  # takes no room on the disk
    assert f"{MAX_CHECKPOINT_BYTES + 1} bytes; the limit is {MAX_CHECKPOINT_BYTES}" in refusal(read_checkpoint, path)


def test_the_file_with_the_highest_epoch_is_used(tmp_path):
    folder = tmp_path / "run" / "prompt_learner"
    folder.mkdir(parents=True)
    for name in ("model.pth.tar-5", "model.pth.tar-50", "model.pth.tar-9", "model-best.pth.tar", "checkpoint"):
        (folder / name).touch()
    assert find_checkpoint(tmp_path / "run", "prompt_learner") == folder / "model.pth.tar-50"
    assert find_checkpoint(folder, "prompt_learner") == folder / "model.pth.tar-50"
    assert find_checkpoint(folder / "model.pth.tar-5", "prompt_learner") == folder / "model.pth.tar-5"


def test_the_best_file_is_used_if_there_is_no_epoch(tmp_path):
    (tmp_path / "model-best.pth.tar").touch()
    assert find_checkpoint(tmp_path, "VLPromptLearner") == tmp_path / "model-best.pth.tar"


def test_the_error_for_a_folder_without_checkpoint_lists_its_files(tmp_path):
    (tmp_path / "seed1").mkdir()
    (tmp_path / "log.txt").touch()
    message = refusal(find_checkpoint, tmp_path, "VLPromptLearner")
    assert "VLPromptLearner/model.pth.tar-<epoch>" in message
    assert "found log.txt, seed1/" in message
    assert "does not exist" in refusal(find_checkpoint, tmp_path / "nowhere", "VLPromptLearner")


def test_a_torchscript_archive_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"clip/{name}", b"\x80\x02}.")
    message = refusal(read_checkpoint, tmp_path / "clip.pt")
    assert "is a TorchScript archive, not a checkpoint" in message
    assert "weights_only" not in message
