"""CSV files of results that later runs continue."""

import csv
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspl.csv_results import CsvResults
from caspl.errors import ImageError, InvalidRequestError
from caspl.results import Classification, Prediction

LABELS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


def result(label="red", *, abstained=False):
    predictions = (Prediction(label, 0, 0.75), Prediction("blue", 1, 0.25))
    return Classification("paint", 3, "sha256:x", predictions, abstained=abstained)


FAILED = Classification("paint", error=ImageError("Invalid image", "two\nlines", code="image_undecodable"))
SOME = [(Path("a.png"), result()), (Path("b,\n'c\".png"), FAILED), (Path("d.png"), result(abstained=True))]


def rows_of(path):
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def write(path, results, domain="paint", top_k=3):
    with CsvResults(path, domain, top_k) as file:
        file.append(results)


def test_a_row_has_the_label_the_classes_and_where_they_come_from(tmp_path):
    write(tmp_path / "out.csv", SOME)
    first, failed, abstained = rows_of(tmp_path / "out.csv")

    assert first == {
        "file": "a.png",
        "label": "red",
        "abstained": "false",
        "class_1": "red",
        "probability_1": "0.750000",
        "class_2": "blue",
        "probability_2": "0.250000",
        "class_3": "",
        "probability_3": "",
        "domain": "paint",
        "version": "3",
        "digest": "sha256:x",
        "error": "",
    }
    assert (failed["file"], failed["label"], failed["error"]) == ("b,\n'c\".png", "", "Invalid image: two lines")
    assert (abstained["label"], abstained["abstained"], abstained["class_1"]) == ("", "true", "red")


def test_a_later_run_finds_the_files_that_have_a_row(tmp_path):
    write(tmp_path / "out.csv", SOME)
    with CsvResults(tmp_path / "out.csv", "paint", 3) as file:
        assert file.files == {str(path) for path, _ in SOME}
        assert file.n_errors == 1
        file.append([(Path("e.png"), result())])

    assert [row["file"] for row in rows_of(tmp_path / "out.csv")] == [*(str(path) for path, _ in SOME), "e.png"]


@given(labels=st.lists(LABELS, min_size=1, max_size=4), data=st.data())
def test_a_file_that_was_cut_anywhere_keeps_its_complete_rows_and_is_continued(labels, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.csv"
        results = [(Path(f"{number}-{label}"), result(label)) for number, label in enumerate(labels)]
        write(path, results)
        complete, content = rows_of(path), path.read_bytes()
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        with CsvResults(path, "paint", 3) as file:
            rest = [one for one in results if str(one[0]) not in file.files]
            assert len(rest) == len(results) - len(file.files)
            file.append(rest)

        assert rows_of(path) == complete


def test_a_name_that_is_not_utf_8_is_found_again(tmp_path):
    name = Path(os.fsdecode(b"caf\xe9.png"))
    write(tmp_path / "out.csv", [(name, result())])

    assert b"caf\xe9.png" in (tmp_path / "out.csv").read_bytes()
    with CsvResults(tmp_path / "out.csv", "paint", 3) as file:
        assert file.files == {str(name)}


def test_a_file_with_other_line_ends_is_continued(tmp_path):
    path = tmp_path / "out.csv"
    write(path, SOME[:1])
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    write(path, SOME[2:])

    assert [row["file"] for row in rows_of(path)] == ["a.png", "d.png"]


@pytest.mark.parametrize(
    ("content", "found"),
    [("my notes", "found my notes"), ("a,b\n1,2\n", "found a,b"), ("\n", "found ")],
)
def test_another_file_is_left_as_it_is(tmp_path, content, found):
    path = tmp_path / "notes.csv"
    path.write_text(content)

    with pytest.raises(InvalidRequestError, match=f"Cannot continue {path}: expected the columns file,.*; {found}"):
        CsvResults(path, "paint", 3)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("domain", "top_k", "message"),
    [("paint", 2, "Use the same --top-k"), ("ink", 3, "its results are of the domain paint")],
)
def test_results_of_another_domain_or_with_other_columns_are_not_mixed(tmp_path, domain, top_k, message):
    write(tmp_path / "out.csv", SOME)
    content = (tmp_path / "out.csv").read_bytes()

    with pytest.raises(InvalidRequestError, match=message):
        CsvResults(tmp_path / "out.csv", domain, top_k)
    assert (tmp_path / "out.csv").read_bytes() == content


def test_a_row_that_was_damaged_by_hand_is_named(tmp_path):
    write(tmp_path / "out.csv", SOME[:1])
    header, row = (tmp_path / "out.csv").read_text().splitlines()
    (tmp_path / "out.csv").write_text(f"{header}\nbroken\n{row}\n")

    with pytest.raises(InvalidRequestError, match="line 2 has 1 columns"):
        CsvResults(tmp_path / "out.csv", "paint", 3)


def test_two_processes_cannot_write_one_file(tmp_path):
    with (
        CsvResults(tmp_path / "out.csv", "paint", 3),
        pytest.raises(InvalidRequestError, match="another process is writing it"),
    ):
        CsvResults(tmp_path / "out.csv", "paint", 3)
