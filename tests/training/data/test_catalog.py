"""Opening data sets by name or path."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.data.tiny_images import draw_all, write
from training.data.catalog import CATALOG, open_dataset
from training.errors import DatasetError

PUBLISHED = {
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397",
    "dtd", "eurosat", "ucf101", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r",
}  # fmt: skip
ROOT = Path(__file__).parents[3]


def test_the_catalog_lists_the_published_data_sets_with_valid_prompts():
    assert set(CATALOG) == PUBLISHED
    for name, layout in CATALOG.items():
        assert layout.template.format("fox") != layout.template, name
        assert layout.template.endswith("."), name


def test_a_path_opens_a_folder_or_a_table(tmp_path):
    draw_all(tmp_path / "animals", "fox/a.jpg", "wolf/b.jpg")
    table = write(tmp_path / "list.csv", "path,label\nanimals/fox/a.jpg,fox\nanimals/wolf/b.jpg,dog\n")
    assert open_dataset(tmp_path / "animals").class_names == ("fox", "wolf")
    assert open_dataset(str(table)).class_names == ("dog", "fox")


def test_one_class_is_an_error(tmp_path):
    draw_all(tmp_path, "fox/a.jpg")
    table = write(tmp_path / "list.csv", "path,label\nfox/a.jpg,fox\n")
    for path in (tmp_path, table):
        with pytest.raises(DatasetError, match=r"one class .*only.*fox.* at least two"):
            open_dataset(path)


def test_single_split_and_template_can_be_set(tmp_path):
    draw_all(tmp_path / "animals", "fox/a.jpg", "wolf/b.jpg")
    dataset = open_dataset(tmp_path / "animals", single_split="test", template="a sketch of a {}.")
    assert list(dataset.splits) == ["test"]
    assert dataset.template == "a sketch of a {}."


def test_a_catalog_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    draw_all(tmp_path / "dtd", "fox/a.jpg", "wolf/b.jpg")
    monkeypatch.chdir(tmp_path)
    assert open_dataset("./dtd").class_names == ("fox", "wolf")
    with pytest.raises(DatasetError, match="Expected layout"):
        open_dataset("dtd", tmp_path)


@pytest.mark.parametrize(("name", "folder"), [("dtd", "dtd"), ("torchvision:dtd", "dtd/dtd")])
def test_the_right_data_folder_is_suggested(tmp_path, name, folder):
    draw_all(tmp_path / "data" / folder, "odd/a.jpg")
    with pytest.raises(DatasetError, match=rf"Pass {tmp_path / 'data'} instead, which contains {folder}/."):
        open_dataset(name, tmp_path / "data" / folder)


@pytest.mark.parametrize("name", ["dtd", "torchvision:dtd"])
def test_a_published_data_set_needs_the_data_folder(name):
    with pytest.raises(DatasetError, match="pass the folder that contains the published data sets"):
        open_dataset(name)


def test_an_unknown_name_lists_the_known_names(tmp_path):
    with pytest.raises(DatasetError) as refused:
        open_dataset("cifar100", tmp_path)
    assert "'cifar100'" in str(refused.value)
    assert all(name in str(refused.value) for name in (*PUBLISHED, "torchvision:", "flowers102", ".csv", ".jsonl"))


def test_a_file_that_is_not_a_table_is_rejected(tmp_path):
    with pytest.raises(DatasetError, match="No data set, folder or table named"):
        open_dataset(write(tmp_path / "notes.txt", "path,label\n"))


def test_opening_a_folder_loads_neither_torch_nor_torchvision(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "wolf/b.jpg")
    code = (
        "import sys; from training.data.catalog import open_dataset; open_dataset(sys.argv[1]);"
        "assert not {'torch', 'torchvision', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
