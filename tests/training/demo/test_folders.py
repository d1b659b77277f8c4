import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from training.demo.__main__ import app
from training.demo.folders import FOLDER_TEST_SEED, write_folders
from training.demo.render import draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import CLASS_NAMES


def test_png_folders_contain_the_series_exactly(tmp_path):
    write_folders("thermal", tmp_path / "thermal", n_train=3, n_test=5)
    pictures = draw_series(FOLDER_TEST_SEED, 5, restyle=DOMAINS["thermal"])
    for index, label in enumerate(pictures.labels.tolist()):
        path = tmp_path / "thermal" / "test" / CLASS_NAMES[label].replace(" ", "_") / f"{index:05d}.png"
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        assert torch.equal(pixels, pictures.pixels[index])
    assert len(list((tmp_path / "thermal" / "train").iterdir())) == 3


def test_the_class_list_is_in_label_order(tmp_path):
    write_folders("clean", tmp_path / "clean", n_train=1, n_test=0)
    assert tuple((tmp_path / "clean" / "classes.txt").read_text().splitlines()) == CLASS_NAMES


def test_jpeg_is_supported(tmp_path):
    write_folders("clean", tmp_path / "clean", n_train=1, n_test=0, suffix="jpg")
    with Image.open(tmp_path / "clean" / "train" / "00000.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (64, 64))


def test_a_folder_with_files_is_not_written_into(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is not empty"):
        write_folders("clean", tmp_path)


def test_an_unknown_domain_fails_the_command(tmp_path):
    result = CliRunner().invoke(app, ["write-folder", "x-ray", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "x-ray" in result.stderr


def test_the_commands_are_frozen():
    names = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    assert names >= {"pretrain-student", "pretrain-teacher", "evaluate", "write-folder", "picture", "all"}
