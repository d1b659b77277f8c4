"""Tables of labelled images: CSV and JSON lines."""

import json

import pytest

from tests.training.data.tiny_images import draw_all, write
from training.data.table import read_table
from training.errors import DatasetError

ROWS = [
    {"path": "shots/b.jpg", "label": "wolf", "split": "train"},
    {"path": "shots/a.jpg", "label": "red_fox", "split": "train"},
    {"path": "c.jpg", "label": "wolf", "split": "test"},
]


@pytest.fixture
def folder(tmp_path):
    return draw_all(tmp_path, "shots/a.jpg", "shots/b.jpg", "c.jpg")


def as_csv(rows):
    columns = list(rows[0])
    return "\n".join([",".join(columns), *(",".join(row[column] for column in columns) for row in rows)]) + "\n"


def as_jsonl(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def refusal(path):
    with pytest.raises(DatasetError) as refused:
        read_table(path)
    return str(refused.value)


@pytest.mark.parametrize(("suffix", "text"), [("csv", as_csv(ROWS)), ("jsonl", as_jsonl(ROWS)), ("CSV", as_csv(ROWS))])
def test_a_table_is_read_in_its_order_with_classes_sorted(folder, suffix, text):
    dataset = read_table(write(folder / f"photos.{suffix}", text), template="{}.")
    assert dataset.name == "photos"
    assert dataset.class_names == ("red fox", "wolf")
    assert dataset.template == "{}."
    assert [(image.path, image.label) for image in dataset.split("train")] == [
        (folder / "shots/b.jpg", 1),
        (folder / "shots/a.jpg", 0),
    ]
    assert [(image.path, image.label) for image in dataset.split("test")] == [(folder / "c.jpg", 1)]


@pytest.mark.parametrize("split", [None, ""])
def test_rows_without_a_split_are_train_rows(folder, split):
    rows = [{"path": row["path"], "label": row["label"]} | ({} if split is None else {"split": split}) for row in ROWS]
    for name, text in (("a.csv", as_csv(rows)), ("a.jsonl", as_jsonl(rows))):
        assert [len(images) for images in read_table(write(folder / name, text)).splits.values()] == [3]


def test_splits_are_recognized_in_any_spelling_and_noted(folder):
    text = "path,label,split\nc.jpg,wolf,Validation\nshots/a.jpg,fox,\nshots/b.jpg,wolf,TRAIN\n"
    dataset = read_table(write(folder / "a.csv", text))
    assert {split: len(images) for split, images in dataset.splits.items()} == {"train": 2, "val": 1}
    assert dataset.notes == ("Validation, TRAIN: read as the splits val, train",)


def test_other_columns_byte_order_marks_and_blank_lines_do_no_harm(folder):
    text = '\ufeffid,label,path\r\n1,"a, b",c.jpg\r\n\r\n2,wolf,shots/a.jpg\r\n'
    assert read_table(write(folder / "a.csv", text)).class_names == ("a, b", "wolf")
    lines = '\ufeff{"path": "c.jpg", "label": "x", "id": 7}\n\n'
    assert read_table(write(folder / "a.jsonl", lines)).class_names == ("x",)


def test_files_outside_the_tables_folder_are_read(folder):
    inner = write(folder / "tables/a.csv", f"path,label\n../c.jpg,wolf\n{folder / 'shots/a.jpg'},fox\n")
    assert [image.path.resolve() for image in read_table(inner).split("train")] == [
        (folder / "c.jpg").resolve(),
        (folder / "shots/a.jpg").resolve(),
    ]
    outside = write(folder / "tables/b.csv", "path,label\n../../absent.jpg,wolf\n")
    assert f"line 2: {folder / 'tables/../../absent.jpg'} does not exist" in refusal(outside)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "path,class\nc.jpg,wolf\n",
            "line 1: the columns must be path, label and optionally split (train, val, test)",
        ),
        (
            "a.csv",
            "",
            "line 1: the columns must be path, label and optionally split (train, val, test); found an empty file",
        ),
        ("a.csv", "path,label\nc.jpg\n", "line 2: invalid label None; each row needs path, label"),
        ("a.csv", 'path,label\nc.jpg,"two\nlines"\n,wolf\n', "line 4: invalid path"),
        ("a.csv", "path,label,split\nc.jpg,wolf,fold1\n", "line 2: unknown split 'fold1'; use train, val, test"),
        ("a.csv", "path,label\nc.jpg,Train\nshots/a.jpg,test\n", "the labels Train, test are names of splits"),
        ("a.csv", "path,label\n", "is empty"),
        ("a.csv", "path,label\nc.jpg,wolf\nc.jpg,fox\n", "c.jpg is already listed in line 2"),
        ("a.csv", "path,label\nc.jpg,red fox\nshots/a.jpg,Red_fox\n", "duplicate class names 'Red_fox' and 'red fox'"),
        ("a.csv", "path,label\nc.jpg,wolf\nx.jpg,fox\ny.jpg,fox\n", "2 of 3 files are missing"),
        ("a.csv", 'path,label\nc.jpg,"wolf\n', "Cannot read the table"),
        ("a.csv", "path,label,split\nc.jpg,wolf,train\nshots/a.jpg,fox,test\n", "'fox' have none"),
        ("a.jsonl", '{"path": "c.jpg"}\n', "line 1: invalid label"),
        ("a.jsonl", '{"path": "c.jpg", "label": 3}\n', "invalid label 3"),
        ("a.jsonl", '{"path": "c.jpg", "label": "wolf"}\n{"path": \n', "line 2: not a JSON object"),
        ("a.jsonl", '\n["c.jpg", "wolf"]\n', """line 2: not a JSON object: '["c.jpg", "wolf"]'"""),
        ("a.jsonl", '{"path": "c.jpg", "label": "wolf", "split": 1}\n', "unknown split 1"),
        ("a.jsonl", "\n", "is empty"),
        ("a.tsv", "path\tlabel\n", "a.tsv is not a table; use *.csv or *.jsonl"),
    ],
)
def test_an_invalid_table_is_rejected_with_the_line(folder, name, text, message):
    assert message in refusal(write(folder / name, text))


def test_a_missing_table_or_one_that_is_not_text_is_rejected(folder):
    assert "Cannot read the table" in refusal(folder / "absent.csv")
    (folder / "a.csv").write_bytes(b"path,label\nc.jpg,\xff\xfe\n")
    assert "Cannot read the table" in refusal(folder / "a.csv")
