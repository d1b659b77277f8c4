"""Labels of open-vocabulary requests are class names: normalized and validated alike."""

import unicodedata

import pytest

from prompt_store.class_names import normalize_labels, spellings
from prompt_store.errors import BundleInvalidError


def test_labels_are_normalized_as_class_names():
    spelled = ["striped_donut", "  red \t fox ", unicodedata.normalize("NFD", "cr\u00e8me"), "white, warm"]
    assert normalize_labels(spelled) == ("striped donut", "red fox", "cr\u00e8me", "white, warm")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "A"),
        ("a_b", "a b"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff46\uff4f\uff58", "fox"),
        ("stra\u00dfe", "STRASSE"),
    ],
)
def test_labels_that_read_alike_are_duplicates(one, other):
    with pytest.raises(BundleInvalidError, match=r"labels\[2\] duplicates labels\[1\]") as failed:
        normalize_labels(["wolf", one, other])
    assert (failed.value.code, failed.value.field) == ("class_duplicate", "labels[2]")


@pytest.mark.parametrize("label", ["", "_", "a\0b", "x" * 129, "\u202eabc", "\ud800", "\ufdd0"])
def test_an_invalid_label_is_named_by_its_position(label):
    with pytest.raises(BundleInvalidError, match=r"labels\[1\] must") as failed:
        normalize_labels(["wolf", label])
    assert failed.value.code == "class_name"


def test_a_name_is_spelled_as_the_first_known_one_that_reads_alike():
    names = ["Wolf", "\uff46\uff4f\uff58", "deer"]
    assert spellings(names, ["wolf", "WOLF", "fox"]) == {"Wolf": "wolf", "\uff46\uff4f\uff58": "fox"}
    assert spellings([], ["wolf"]) == spellings(names, []) == {}
