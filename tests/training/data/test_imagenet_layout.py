"""ImageNet and its variants in miniature."""

import pytest

from tests.training.data.tiny_images import draw_all, relative, write
from training.data.catalog import open_dataset
from training.errors import DatasetError

CLASS_NAMES = (
    "n01440764 tench\nn01443537 goldfish\nn03773504 missile\n"
    "n04008634 missile\nn04355933 sunglasses\nn04356056 sunglasses\n"
)
IDS = [line.split()[0] for line in CLASS_NAMES.splitlines()]
NAMES = ("tench", "goldfish", "missile", "projectile", "sunglass", "sunglasses")
FOLDERS = {
    "imagenet_sketch": "imagenet-sketch/images",
    "imagenet_a": "imagenet-adversarial/imagenet-a",
    "imagenet_r": "imagenet-rendition/imagenet-r",
}


@pytest.fixture
def imagenet(tmp_path):
    home = tmp_path / "imagenet"
    write(home / "classnames.txt", CLASS_NAMES)
    for wordnet_id in reversed(IDS):
        draw_all(
            home / "images", f"train/{wordnet_id}/b.JPEG", f"train/{wordnet_id}/a.JPEG", f"val/{wordnet_id}/v.JPEG"
        )
    return tmp_path


def refusal(name, root):
    with pytest.raises(DatasetError) as refused:
        open_dataset(name, root)
    return str(refused.value)


def test_imagenet_labels_follow_the_sorted_ids_and_its_val_images_are_the_test_split(imagenet):
    dataset = open_dataset("imagenet", imagenet)
    assert list(dataset.splits) == ["train", "test"]
    assert dataset.class_names == NAMES
    assert relative(dataset, "train")[:3] == [
        ("images/train/n01440764/a.JPEG", "tench"),
        ("images/train/n01440764/b.JPEG", "tench"),
        ("images/train/n01443537/a.JPEG", "goldfish"),
    ]
    assert [image.label for image in dataset.split("test")] == [0, 1, 2, 3, 4, 5]


def test_duplicate_imagenet_names_are_distinguished_by_id(imagenet):
    write(imagenet / "imagenet/classnames.txt", CLASS_NAMES.replace("n04008634 missile", "n04008634 cannon ball"))
    names = open_dataset("imagenet", imagenet).class_names
    assert names[2:4] == ("missile", "cannon ball")


@pytest.mark.parametrize(("name", "folder"), FOLDERS.items())
def test_variants_number_their_classes_and_have_only_a_test_split(name, folder, tmp_path):
    home = (tmp_path / folder).parent
    write(home / "classnames.txt", CLASS_NAMES)
    write(tmp_path / folder / "README.txt", "about")
    draw_all(tmp_path / folder, "n04008634/x.jpg", "n01443537/y.jpg")
    dataset = open_dataset(name, tmp_path)
    assert list(dataset.splits) == ["test"]
    assert dataset.class_names == ("goldfish", "projectile")
    assert [(image.path.name, image.label) for image in dataset.split("test")] == [("y.jpg", 0), ("x.jpg", 1)]


def test_imagenet_v2_folders_are_labels_sorted_as_numbers(tmp_path):
    home = tmp_path / "imagenetv2"
    write(home / "classnames.txt", "".join(f"n{label:08d} class {label}\n" for label in range(11)))
    draw_all(home / "imagenetv2-matched-frequency-format-val", *(f"{label}/{label}.jpeg" for label in range(11)))
    dataset = open_dataset("imagenetv2", tmp_path)
    assert dataset.class_names[10] == "class 10"
    assert [(image.path.stem, image.label) for image in dataset.split("test")] == [
        (str(label), label) for label in range(11)
    ]


@pytest.mark.parametrize("change", [lambda home: (home / "5").rename(home / "6"), lambda home: (home / "x").mkdir()])
def test_imagenet_v2_folders_must_match_the_class_names(tmp_path, change):
    home = tmp_path / "imagenetv2"
    write(home / "classnames.txt", CLASS_NAMES)
    images = draw_all(home / "imagenetv2-matched-frequency-format-val", *(f"{label}/a.jpeg" for label in range(6)))
    change(images)
    assert "must contain the folders 0 to 5" in refusal("imagenetv2", tmp_path)


def test_a_class_folder_without_a_name_is_rejected(imagenet):
    draw_all(imagenet / "imagenet/images", "val/n99999999/a.JPEG")
    assert "classnames.txt does not list the class folders n99999999" in refusal("imagenet", imagenet)


def test_an_imagenet_class_without_train_images_is_rejected(imagenet):
    for path in (imagenet / "imagenet/images/train/n01443537").iterdir():
        path.unlink()
    assert "'goldfish' have none" in refusal("imagenet", imagenet)


@pytest.mark.parametrize(
    ("line", "number"), [("n01440764\n", 1), (f"{CLASS_NAMES}\nn01440764 tench again\n", 8)], ids=["nameless", "twice"]
)
def test_an_invalid_line_of_the_class_names_is_rejected(imagenet, line, number):
    write(imagenet / "imagenet/classnames.txt", line)
    assert f"classnames.txt, line {number}: expected a unique WordNet id and a class name" in refusal(
        "imagenet", imagenet
    )


def test_a_missing_val_folder_is_marked(imagenet):
    (imagenet / "imagenet/images/val").rename(imagenet / "imagenet/images/validation")
    message = refusal("imagenet", imagenet)
    assert "imagenet/images/val/ is missing" in message
    assert [line.endswith("<- missing") for line in message.splitlines()] == [False, False, False, False, True, False]
