import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from training.demo.__main__ import app
from training.demo.folders import FOLDER_TEST_SEED, cached_images, write_folders
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


def test_cached_images_are_drawn_once_and_again_for_another_number_or_seed(tmp_path, monkeypatch):
    first = cached_images("thermal", tmp_path, 2)
    assert [len(cached_images("thermal", tmp_path, 3).files), len(first.files)] == [3, 2]
    assert cached_images("thermal", tmp_path, 2, seed=1).digest != first.digest
    monkeypatch.setattr("training.demo.folders.write_folders", lambda *_, **__: pytest.fail("drawn again"))
    assert cached_images("thermal", tmp_path, 2).digest == first.digest


def test_cached_images_of_an_interrupted_call_are_drawn_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("training.demo.folders.find_images", lambda _: None)
        cached_images("clean", tmp_path, 2)
    (mark,) = tmp_path.glob("*/done")
    mark.unlink()
    (mark.parent / "train" / "00001.png").unlink()
    assert len(cached_images("clean", tmp_path, 2).files) == 2


@pytest.mark.parametrize("command", ["ablate", "boost-variants", "shared-boost", "teachers"])
def test_seeds_that_are_no_numbers_fail_before_anything_is_written(tmp_path, command):
    result = CliRunner().invoke(app, [command, "--seeds", "1,two", "--work-dir", str(tmp_path / "work")])
    assert result.exit_code == 2
    assert "--seeds" in result.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("command", ["ablate", "adapt", "boost", "crowd", "int8", "label-free"])
def test_an_unknown_domain_fails_before_anything_is_computed(command):
    result = CliRunner().invoke(app, [command, "x-ray"])
    assert result.exit_code == 2
    assert "'x-ray'" in result.stderr


def test_an_unknown_method_of_the_default_recipes_fails_before_training():
    result = CliRunner().invoke(app, ["defaults", "--methods", "coop,coup"])
    assert result.exit_code == 2
    assert "'coup'" in result.stderr


def test_an_unknown_domain_fails_the_command(tmp_path):
    result = CliRunner().invoke(app, ["write-folder", "x-ray", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "x-ray" in result.stderr


def test_the_commands_are_frozen():
    names = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    assert names >= {"pretrain-student", "pretrain-teacher", "evaluate", "write-folder", "picture", "all"}
