"""Class lists: parsing and validation."""

import pytest

from prompt_store.class_names import check_unique
from prompt_store.errors import BundleInvalidError
from prompt_store.manifest import MAX_CLASSES
from training.data.class_list import read_classes
from training.data.dataset import normalize_names
from training.errors import ClassListError, DatasetError


@pytest.fixture
def listing(tmp_path):
    def write(content):
        path = tmp_path / "classes.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_byte_order_mark_and_windows_line_ends_are_not_part_of_a_name(listing):
    assert read_classes(listing(b"\xef\xbb\xbfred_fox\r\nwolf\r\n")) == ["red fox", "wolf"]


def test_names_are_normalized_as_in_data_sets(listing):
    spelled = ["cafe\u0301_noir", "  red \t fox ", "polar\u00a0bear", "line\u2028end"]
    names = read_classes(listing("\n".join(spelled)))
    assert names == ["caf\u00e9 noir", "red fox", "polar bear", "line end"]
    assert tuple(names) == normalize_names(spelled, of="test")


@pytest.mark.parametrize(
    ("one", "other"),
    [("fox", "FOX"), ("caf\u00e9", "cafe\u0301"), ("\uff46\uff4f\uff58", "fox"), ("stra\u00dfe", "STRASSE")],
)
def test_duplicate_names_are_rejected_with_both_lines(listing, one, other):
    with pytest.raises(ClassListError, match=r"classes\.txt contains .* twice: in line 4, and as .* in line 2"):
        read_classes(listing(f"wolf\n{one}\n\n{other}\n"))
    with pytest.raises(DatasetError):
        normalize_names([one, other], of="test")
    with pytest.raises(BundleInvalidError):
        check_unique([one, other])


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("x" * 129, "1 to 128 characters"),
        ("_", "1 to 128 characters"),
        ("\U0001f98a" * 128 + "\u0301", "1 to 128 characters"),
        ("f\u200box", "control, format"),
        ("bell\x07", "control, format"),
        ("\ue000", "private"),
    ],
)
def test_invalid_names_are_rejected_with_their_line(listing, name, rule):
    with pytest.raises(ClassListError, match=rf"classes\.txt, line 3: .*{rule}.* Found '"):
        read_classes(listing(f"wolf\n\n{name}\n"))


def test_an_invalid_name_is_truncated_and_escaped_in_the_message(listing):
    with pytest.raises(ClassListError) as refused:
        read_classes(listing("\x1b[31m" + "x" * 500))
    assert "\x1b" not in str(refused.value)
    assert "and more" in str(refused.value)
    assert "x" * 60 not in str(refused.value)


def test_names_at_the_limit_are_accepted(listing):
    assert read_classes(listing("x" * 128)) == ["x" * 128]


def test_too_many_classes_are_rejected_with_the_line(listing):
    numbered = [f"class {index}" for index in range(MAX_CLASSES)]
    assert len(read_classes(listing("\n".join(numbered)))) == MAX_CLASSES
    with pytest.raises(ClassListError, match=rf"more than {MAX_CLASSES} classes, see line {MAX_CLASSES + 2}"):
        read_classes(listing("\n" + "\n".join([*numbered, "one more"])))


def test_line_numbers_match_those_of_an_editor(listing):
    with pytest.raises(ClassListError, match="line 3:"):
        read_classes(listing("a\u2028b\x0cc\nwolf\nf\u200box\n"))


@pytest.mark.parametrize("content", ["fox\n".encode("utf-16"), "caf\u00e9".encode("latin-1")])
def test_other_encodings_are_rejected(listing, content):
    with pytest.raises(ClassListError, match="must be UTF-8 text"):
        read_classes(listing(content))


@pytest.mark.parametrize("content", ["", "\ufeff", "\n \r\n\t\n"])
def test_an_empty_list_is_rejected(listing, content):
    with pytest.raises(ClassListError, match="is empty"):
        read_classes(listing(content))
