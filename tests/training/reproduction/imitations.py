"""Imitations of the paper's data sets in their published layouts: four classes, two train images and one test image."""

import json

from tests.training.evaluation.tiny_sets import paint
from training.data.catalog import CATALOG

NAMES = ("banded", "dotted", "grid", "woven")
IDS = ("n00000001", "n00000002", "n00000003", "n00000004")
EUROSAT = ("AnnualCrop", "Forest", "River", "SeaLake")
SPLIT_SETS = {
    "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "oxford_pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json"),
    "stanford_cars": ("stanford_cars", "", "split_zhou_StanfordCars.json"),
    "oxford_flowers": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json"),
    "food101": ("food-101", "images", "split_zhou_Food101.json"),
    "sun397": ("sun397", "SUN397", "split_zhou_SUN397.json"),
    "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json"),
    "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json"),
    "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json"),
}


def write_all(root):
    """All fifteen data sets below `root`."""
    for folder, images, split_file in SPLIT_SETS.values():
        _write_split_set(root / folder, images, split_file)
    _write_aircraft(root / "fgvc_aircraft")
    _write_imagenet(root)
    assert set(SPLIT_SETS) | {"fgvc_aircraft", "imagenet"} <= set(CATALOG)
    return root


def _images(split):
    """Label and number of each image of a split."""
    return [(label, number) for label in range(4) for number in ((0, 1) if split == "train" else (100,))]


def _write_split_set(home, images, split_file):
    names = EUROSAT if home.name == "eurosat" else NAMES
    lists = {"train": [], "val": [], "test": []}
    for split in ("train", "test"):
        for label, number in _images(split):
            folder = f"cars_{split}" if home.name == "stanford_cars" else names[label]
            file = f"{folder}/{names[label]}_{number}.jpg"
            paint(home / images / file, label, number)
            lists[split].append([file, label, names[label]])
    (home / split_file).write_text(json.dumps(lists))


def _write_aircraft(home):
    lines = {"train": [], "val": [], "test": []}
    for split in ("train", "test"):
        for label, number in _images(split):
            paint(home / "images" / f"{label}{number:03d}.jpg", label, number)
            lines[split].append(f"{label}{number:03d} {NAMES[label]}\n")
    (home / "variants.txt").write_text("".join(f"{name}\n" for name in NAMES))
    for split, found in lines.items():
        (home / f"images_variant_{split}.txt").write_text("".join(found))


def _write_imagenet(root):
    names = "".join(f"{wordnet_id} {name}\n" for wordnet_id, name in zip(IDS, NAMES, strict=True))
    for split, folder in (("train", "train"), ("test", "val")):
        for label, number in _images(split):
            paint(root / "imagenet" / "images" / folder / IDS[label] / f"{number}.JPEG", label, number)
    for label, number in _images("test"):
        paint(root / "imagenetv2/imagenetv2-matched-frequency-format-val" / str(label) / f"{number}.jpeg", label, 200)
        paint(root / "imagenet-sketch/images" / IDS[label] / f"{number}.JPEG", label, 300)
        if label < 2:
            paint(root / "imagenet-adversarial/imagenet-a" / IDS[label] / f"{number}.jpg", label, 400)
            paint(root / "imagenet-rendition/imagenet-r" / IDS[label] / f"{number}.jpg", label, 500)
    for home in ("imagenet", "imagenetv2", "imagenet-sketch", "imagenet-adversarial", "imagenet-rendition"):
        (root / home / "classnames.txt").write_text(names)
