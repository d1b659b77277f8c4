"""CoOp's layout in miniature: split files and FGVC-Aircraft's lists."""

import json

import pytest

from tests.training.data.tiny_images import draw_all, relative, write, write_split_layout
from training.data.catalog import CATALOG, open_dataset
from training.data.few_shot import base_and_new
from training.errors import DatasetError

DTD_FILE = "dtd/split_zhou_DescribableTextures.json"
DTD_LISTS = {
    "train": [["dotted/d_2.jpg", 1, "dotted"], ["banded/b_1.jpg", 0, "banded"], ["knitted/k_1.jpg", 2, "knitted"]],
    "val": [["banded/b_3.jpg", 0, "banded"]],
    "test": [["knitted/k_4.jpg", 2, "knitted"], ["dotted/d_5.jpg", 1, "dotted"]],
}
AIRCRAFT = "fgvc_aircraft"


@pytest.fixture
def dtd(tmp_path):
    write_split_layout(tmp_path / "dtd", "images", "split_zhou_DescribableTextures.json", DTD_LISTS)
    return tmp_path


@pytest.fixture
def aircraft(tmp_path):
    home = tmp_path / AIRCRAFT
    draw_all(home / "images", "0056978.jpg", "1025794.jpg", "0900914.jpg", "0300000.jpg")
    write(home / "variants.txt", "A340-300\n707-320\nF/A-18\n")
    write(home / "images_variant_train.txt", "1025794 707-320\n0056978 F/A-18\n0300000 A340-300\n")
    write(home / "images_variant_val.txt", "")
    write(home / "images_variant_test.txt", "0900914 F/A-18\n")
    return tmp_path


def refusal(name, root):
    with pytest.raises(DatasetError) as refused:
        open_dataset(name, root)
    return str(refused.value)


def test_a_split_file_is_read_in_its_order_and_by_its_labels(dtd):
    dataset = open_dataset("dtd", dtd)
    assert dataset.name == "dtd"
    assert dataset.template == "{} texture."
    assert dataset.class_names == ("banded", "dotted", "knitted")
    for split, entries in DTD_LISTS.items():
        assert relative(dataset, split) == [(path, name) for path, _, name in entries]
        assert all(image.path.is_file() for image in dataset.split(split))


def test_the_digest_of_a_split_file_does_not_depend_on_its_location(dtd, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_split_layout(other / "dtd", "images", "split_zhou_DescribableTextures.json", DTD_LISTS)
    assert open_dataset("dtd", other).digest == open_dataset("dtd", dtd).digest


def test_missing_parts_are_marked_in_the_expected_layout(dtd):
    (dtd / DTD_FILE).unlink()
    assert refusal("dtd", dtd).splitlines() == [
        f"dtd: {DTD_FILE} is missing in {dtd}. Expected layout:",
        f"{dtd}/",
        "└── dtd/",
        "    ├── images/                              the images",
        "    └── split_zhou_DescribableTextures.json  linked in CoOp's DATASETS.md  <- missing",
    ]


@pytest.mark.parametrize("name", CATALOG)
def test_an_empty_data_folder_shows_the_layout_of_every_data_set(name, tmp_path):
    message = refusal(name, tmp_path)
    first, *tree = message.splitlines()
    assert first.endswith(f"is missing in {tmp_path}. Expected layout:")
    assert tree[:2] == [f"{tmp_path}/", f"└── {CATALOG[name].folder}/"]
    assert all(line.endswith("<- missing") for line in tree[2:])
    assert len(tree) >= 4


def test_eurosat_class_names_are_replaced_from_either_spelling(tmp_path):
    names = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop"]
    names += ["Residential", "River", "SeaLake"]
    expected = (
        "Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road", "Industrial Buildings",
        "Pasture Land", "Permanent Crop Land", "Residential Buildings", "River", "Sea or Lake",
    )  # fmt: skip
    for place, spelled in (("a", names), ("b", expected)):
        train = [[f"{folder}/{folder}_1.jpg", label, name]
                 for label, (folder, name) in enumerate(zip(names, spelled, strict=True))]  # fmt: skip
        lists = {"train": train, "val": [], "test": []}
        write_split_layout(tmp_path / place / "eurosat", "2750", "split_zhou_EuroSAT.json", lists)
        dataset = open_dataset("eurosat", tmp_path / place)
        assert dataset.class_names == expected
        assert relative(dataset, "train")[0] == ("AnnualCrop/AnnualCrop_1.jpg", "Annual Crop Land")


def test_cars_are_next_to_their_split_file(tmp_path):
    lists = {
        "train": [["cars_train/00001.jpg", 0, "2000 AM General Hummer SUV"], ["cars_train/00002.jpg", 1, "Acura RL"]],
        "val": [],
        "test": [["cars_test/00001.jpg", 0, "2000 AM General Hummer SUV"]],
    }
    write_split_layout(tmp_path / "stanford_cars", "", "split_zhou_StanfordCars.json", lists)
    dataset = open_dataset("stanford_cars", tmp_path)
    assert dataset.split("test")[0].path == tmp_path / "stanford_cars/cars_test/00001.jpg"


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ("[]", "must be a JSON object with the lists train, val, test"),
        ("{}", "must be a JSON object with the lists train, val, test"),
        ('{"train": [], "val": []}', "must be a JSON object with the lists train, val, test"),
        ('{"train": [', "Cannot read the splits from"),
        ([["a.jpg", 0]], "train[0]: expected [path, label, class name], found ['a.jpg', 0]"),
        ([["a.jpg", "0", "x"]], "train[0]: expected [path, label, class name]"),
        ([["a.jpg", True, "x"]], "train[0]: expected [path, label, class name]"),
        ([["a.jpg", -1, "x"]], "train[0]: expected [path, label, class name]"),
        ([["../a.jpg", 0, "x"]], "train[0]: '../a.jpg' is outside the image folder"),
        ([["/a.jpg", 0, "x"]], "train[0]: '/a.jpg' is outside the image folder"),
        ([["a.jpg", 0, "x"], ["b.jpg", 0, "y"]], "train[1]: label 0 is both 'x' and 'y'"),
        ([["a.jpg", 0, "x"], ["b.jpg", 3, "y"]], "labels 0 to 3 must all have images; 1, 2 have none"),
        ([["a.jpg", 0, "x_y"], ["b.jpg", 1, "X y"]], "duplicate class names 'x_y' and 'X y'"),
        ([["a.jpg", 0, "x"], ["c.jpg", 0, "x"], ["d.jpg", 0, "x"]], "2 of 3 images"),
    ],
)
def test_an_invalid_split_file_is_rejected(tmp_path, lists, message):
    draw_all(tmp_path / "dtd/images", "a.jpg", "b.jpg")
    text = lists if isinstance(lists, str) else json.dumps({"train": lists, "val": [], "test": []})
    write(tmp_path / DTD_FILE, text)
    assert message in refusal("dtd", tmp_path)


def test_a_class_in_the_test_list_only_is_rejected(tmp_path):
    lists = {"train": [["a.jpg", 0, "x"]], "val": [], "test": [["b.jpg", 1, "y"]]}
    write_split_layout(tmp_path / "dtd", "images", "split_zhou_DescribableTextures.json", lists)
    assert "'y' have none" in refusal("dtd", tmp_path)


def test_aircraft_is_read_from_its_own_lists_in_the_order_of_variants(aircraft):
    dataset = open_dataset("fgvc_aircraft", aircraft)
    assert dataset.class_names == ("A340-300", "707-320", "F/A-18")
    assert dataset.template == "a photo of a {}, a type of aircraft."
    assert list(dataset.splits) == ["train", "test"]
    assert relative(dataset, "train") == [
        ("1025794.jpg", "707-320"),
        ("0056978.jpg", "F/A-18"),
        ("0300000.jpg", "A340-300"),
    ]
    base, new = base_and_new(dataset)
    assert (base.class_names, new.class_names) == (("A340-300", "707-320"), ("F/A-18",))
    assert relative(new, "test") == [("0900914.jpg", "F/A-18")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0300000 A380\n", "line 1: expected an image and a variant from variants.txt, found '0300000 A380'"),
        ("\n0300000\n", "line 2: expected an image and a variant from variants.txt, found '0300000'"),
        ("0300001 F/A-18\n", "1 of 1 images"),
    ],
)
def test_an_invalid_aircraft_list_is_rejected_with_the_line(aircraft, line, message):
    write(aircraft / AIRCRAFT / "images_variant_test.txt", line)
    assert message in refusal("fgvc_aircraft", aircraft)


def test_a_list_that_is_not_text_is_rejected(aircraft):
    (aircraft / AIRCRAFT / "variants.txt").write_bytes(b"\xff\xfe")
    assert "as UTF-8 text" in refusal("fgvc_aircraft", aircraft)
