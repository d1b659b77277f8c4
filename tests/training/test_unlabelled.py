"""Commands report the files that they do not read."""

import io

from rich.console import Console
from typer.testing import CliRunner

from tests.tiny import register_tiny_models
from tests.training.data.tiny_images import draw_all, write
from training.cli import adapt_app
from training.unlabelled import read_data_set, read_folder

LINE = "2 files not read: 1 .gif, 1 .md; 1 folder not read: 1 @eaDir"


def mixed_folder(root):
    draw_all(root, "fox/a.jpg", "wolf/b.png", "wolf/c.gif", "fox/@eaDir/a.jpg")
    write(root / "notes.md", "no image")
    return root


def test_boosting_on_a_folder_counts_the_files_that_are_not_read(tmp_path):
    classes, printed = write(tmp_path / "classes.txt", "fox\nwolf\n"), io.StringIO()
    data = read_folder(mixed_folder(tmp_path / "photos"), classes, Console(file=printed))
    assert [path.name for path in data.images.files] == ["a.jpg", "b.png"]
    assert LINE in printed.getvalue().splitlines()


def test_boosting_on_a_data_set_counts_the_files_that_are_not_read(tmp_path):
    printed = io.StringIO()
    data = read_data_set(str(mixed_folder(tmp_path / "photos")), None, Console(file=printed))
    assert [path.name for path in data.images.files] == ["a.jpg", "b.png"]
    assert LINE in printed.getvalue().splitlines()


def test_adapting_counts_the_files_that_are_not_read(tmp_path):
    register_tiny_models()
    options = ["--method", "coop", "--data", mixed_folder(tmp_path / "photos"), "--domain", "pets"]
    options += ["--backbone", "tiny", "--random-weights", "--device", "cpu", "--out", tmp_path / "pets.safetensors"]
    options += ["--set", "epochs=1", "--set", "warmup_epochs=0"]
    result = CliRunner().invoke(adapt_app, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    assert LINE in result.stderr.splitlines()
