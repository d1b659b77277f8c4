"""Data sets read through torchvision, from small folders in torchvision's layout."""

import json
import sys

import numpy as np
import pytest

from tests.training.data.tiny_images import draw_all, relative, write
from training.data.catalog import open_dataset
from training.data.torchvision_sets import TORCHVISION_NAMES, read_torchvision
from training.errors import DatasetError


def refusal(name, root):
    with pytest.raises(DatasetError) as refused:
        open_dataset(f"torchvision:{name}", root)
    return str(refused.value)


@pytest.fixture
def dtd(tmp_path):
    home = tmp_path / "dtd/dtd"
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        names = [f"dotted/dotted_{number}.jpg", f"banded/banded_{number}.jpg"]
        draw_all(home / "images", *names)
        write(home / "labels" / f"{split}1.txt", "\n".join(names) + "\n")
    return tmp_path


def test_dtd_keeps_its_official_splits_and_their_order(dtd):
    dataset = open_dataset("torchvision:dtd", dtd)
    assert dataset.name == "torchvision:dtd"
    assert dataset.class_names == ("banded", "dotted")
    assert dataset.template == "{} texture."
    assert list(dataset.splits) == ["train", "val", "test"]
    assert relative(dataset, "val") == [
        ("images/dotted/dotted_2.jpg", "dotted"),
        ("images/banded/banded_2.jpg", "banded"),
    ]
    assert all(image.path.is_file() for images in dataset.splits.values() for image in images)


def test_splits_with_different_classes_are_rejected(dtd):
    write(dtd / "dtd/dtd/labels/test1.txt", "banded/banded_3.jpg\n")
    assert "all splits must have the same classes; test differs in dotted" in refusal("dtd", dtd)


def test_a_listed_but_missing_image_is_an_error(dtd):
    (dtd / "dtd/dtd/images/dotted/dotted_2.jpg").unlink()
    assert "1 of 2 images listed in" in refusal("dtd", dtd)
    assert "dotted_2.jpg" in refusal("dtd", dtd)


@pytest.mark.parametrize("single_split", ["train", "test"])
def test_eurosat_has_no_official_split(tmp_path, single_split):
    draw_all(tmp_path / "eurosat/2750", "SeaLake/SeaLake_1.jpg", "Forest/Forest_2.jpg", "Forest/Forest_10.jpg")
    dataset = open_dataset("torchvision:eurosat", tmp_path, single_split=single_split)
    assert dataset.class_names == ("Forest", "Sea or Lake")
    assert relative(dataset, single_split) == [
        ("Forest/Forest_10.jpg", "Forest"),
        ("Forest/Forest_2.jpg", "Forest"),
        ("SeaLake/SeaLake_1.jpg", "Sea or Lake"),
    ]


def test_food_has_train_and_test(tmp_path):
    home = tmp_path / "food-101"
    draw_all(home / "images", "hot_dog/1.jpg", "hot_dog/2.jpg", "apple_pie/3.jpg", "apple_pie/4.jpg")
    write(home / "meta/train.json", json.dumps({"hot_dog": ["hot_dog/1"], "apple_pie": ["apple_pie/3"]}))
    write(home / "meta/test.json", json.dumps({"hot_dog": ["hot_dog/2"], "apple_pie": ["apple_pie/4"]}))
    dataset = open_dataset("torchvision:food101", tmp_path)
    assert list(dataset.splits) == ["train", "test"]
    assert relative(dataset, "train") == [("images/hot_dog/1.jpg", "hot dog"), ("images/apple_pie/3.jpg", "apple pie")]


def test_aircraft_has_three_splits(tmp_path):
    data = tmp_path / "fgvc-aircraft-2013b/data"
    write(data / "variants.txt", "707-320\nF/A-18\n")
    for split in ("train", "val", "test"):
        draw_all(data / "images", f"{split}1.jpg", f"{split}2.jpg")
        write(data / f"images_variant_{split}.txt", f"{split}1 F/A-18\n{split}2 707-320\n")
    dataset = open_dataset("torchvision:fgvc_aircraft", tmp_path)
    assert list(dataset.splits) == ["train", "val", "test"]
    assert relative(dataset, "val") == [("data/images/val1.jpg", "F/A-18"), ("data/images/val2.jpg", "707-320")]


def test_pets_join_train_and_val(tmp_path):
    home = tmp_path / "oxford-iiit-pet"
    draw_all(
        home / "images", "Abyssinian_1.jpg", "american_bulldog_2.jpg", "Abyssinian_3.jpg", "american_bulldog_4.jpg"
    )
    write(home / "annotations/trainval.txt", "Abyssinian_1 1 1 1\namerican_bulldog_2 2 2 1\n")
    write(home / "annotations/test.txt", "american_bulldog_4 2 2 1\nAbyssinian_3 1 1 1\n")
    dataset = open_dataset("torchvision:oxford_iiit_pet", tmp_path)
    assert dataset.class_names == ("Abyssinian", "American Bulldog")
    assert relative(dataset, "test") == [
        ("images/american_bulldog_4.jpg", "American Bulldog"),
        ("images/Abyssinian_3.jpg", "Abyssinian"),
    ]


def test_caltech_has_no_official_split(tmp_path):
    draw_all(
        tmp_path / "caltech101/101_ObjectCategories",
        "BACKGROUND_Google/image_0001.jpg", "Faces/image_0001.jpg", "Faces/image_0002.jpg", "wild_cat/image_0001.jpg",
    )  # fmt: skip
    dataset = open_dataset("torchvision:caltech101", tmp_path)
    assert dataset.class_names == ("Faces", "wild cat")
    assert [image.path.is_file() for image in dataset.split("train")] == [True] * 3
    assert relative(dataset, "train")[2] == ("101_ObjectCategories/wild_cat/image_0001.jpg", "wild cat")


def test_scenes_put_the_place_first(tmp_path):
    draw_all(tmp_path / "SUN397", "a/apartment_building/outdoor/sun_b.jpg", "a/abbey/sun_c.jpg", "a/abbey/sun_a.jpg")
    write(tmp_path / "SUN397/ClassName.txt", "/a/abbey\n/a/apartment_building/outdoor\n")
    dataset = open_dataset("torchvision:sun397", tmp_path)
    assert dataset.class_names == ("abbey", "outdoor apartment building")
    assert [image.path.name for image in dataset.split("train")] == ["sun_a.jpg", "sun_c.jpg", "sun_b.jpg"]


def test_cars_are_read_from_their_annotations(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    home = tmp_path / "stanford_cars"
    (home / "devkit").mkdir(parents=True)
    scipy_io.savemat(home / "devkit/cars_meta.mat", {"class_names": np.array(["Audi S5 2012", "BMW M3 2012"], object)})
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        draw_all(home / f"cars_{split}", "1.jpg", "2.jpg")
        rows = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=[("fname", object), ("class", object)])
        scipy_io.savemat(home / path, {"annotations": rows})
    dataset = open_dataset("torchvision:stanford_cars", tmp_path)
    assert relative(dataset, "test") == [("cars_test/1.jpg", "BMW M3 2012"), ("cars_test/2.jpg", "Audi S5 2012")]


def test_torchvisions_error_for_a_damaged_index_is_shown(tmp_path):
    (tmp_path / "flowers-102/jpg").mkdir(parents=True)
    write(tmp_path / "flowers-102/imagelabels.mat", "not these")
    assert "torchvision cannot read" in refusal("flowers102", tmp_path)


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_an_empty_root_is_an_error_and_stays_empty(name, tmp_path):
    assert "no folder" in refusal(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    message = refusal("imagenet", tmp_path)
    assert all(name in message for name in TORCHVISION_NAMES)


def test_without_torchvision_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DatasetError, match=r"requires torchvision, .*pip install torchvision"):
        read_torchvision("dtd", tmp_path)
