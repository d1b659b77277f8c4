"""Bundles: every rule of the format at its limit and one beyond it, with the code of its violation."""

import copy
import json

import numpy as np

from prompt_store.header import MAX_HEADER_BYTES
from tests.prompt_store.samples import handmade, header_and_data, manifest_fields, raw_file, tensors


def changed_header(change):
    header, data = header_and_data()
    change(header)
    return raw_file(header, data)


def changed_manifest(path, value):
    fields = copy.deepcopy(manifest_fields())
    *parents, last = path.split(".")
    target = fields
    for key in parents:
        target = target[key]
    target[last] = value
    return handmade(fields)


def changed_tensor(name, array):
    return handmade(arrays=tensors() | {name: array})


def with_entry(**changes):
    return changed_header(lambda header: header["text.features"].update(changes))


def header_text():
    header, data = header_and_data()
    return json.dumps(header), data


def duplicate_key():
    text, data = header_text()
    return raw_file('{"image.boost":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' + text[1:], data)


def renamed(name):
    header, data = header_and_data()
    header[name] = header.pop("image.boost")
    return raw_file(header, data)


def many_tensors(count):
    arrays = {f"t{index}": np.zeros(1, np.float32) for index in range(count)}
    return handmade(arrays=arrays)


def class_names(*names):
    arrays = tensors(n_classes=len(names))
    return handmade(manifest_fields(class_names=names), arrays)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def manifest_text(old, new):
    return handmade(json.dumps(manifest_fields()).replace(old, new, 1))


def spoilt(name, value):
    array = tensors()[name].copy()
    array.flat[1] = value
    return changed_tensor(name, array)


def class_head(*, share=0.5, n_classes=3, head_weight=None):
    head = {"head.weight": np.ones((n_classes, 5), np.float32), "head.bias": np.ones(n_classes, np.float32)}
    if head_weight is not None:
        head["head.weight"] = head_weight
    return handmade(manifest_fields(stack=manifest_fields()["stack"] | {"head_share": share}), tensors() | head)


VALID = handmade()
HEADER_TEXT, DATA = header_text()

REFUSED = {
    # the container
    "empty": (b"", "st_header_length"),
    "seven bytes": (b"\x00" * 7, "st_header_length"),
    "header of one byte": (raw_file("{"), "st_header_length"),
    "header beyond the file": ((2**20).to_bytes(8, "little") + b"{}", "st_header_length"),
    "header length of 2^64-1": (b"\xff" * 8 + b"{}", "st_header_length"),
    "header over the limit": (raw_file("{" + " " * MAX_HEADER_BYTES), "st_header_length"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, "st_header_length"),
    "leading space": (raw_file(" " + HEADER_TEXT, DATA), "st_header_start"),
    "byte order mark": (raw_file("\ufeff" + HEADER_TEXT, DATA), "st_header_start"),
    "tab as padding": (raw_file(HEADER_TEXT, DATA, pad=b"\t"), "st_header_json"),
    "NUL as padding": (raw_file(HEADER_TEXT, DATA, pad=b"\x00"), "st_header_json"),
    "two JSON values": (raw_file(HEADER_TEXT + "{}", DATA), "st_header_json"),
    "not UTF-8": (raw_file(HEADER_TEXT.encode().replace(b"image", b"imag\xff"), DATA), "st_header_json"),
    "deep nesting": (raw_file('{"a":' * 100_000 + "1" + "}" * 100_000), "st_header_json"),
    "duplicate tensor": (duplicate_key(), "st_duplicate_key"),
    "duplicate metadata key": (
        raw_file(HEADER_TEXT.replace('"manifest"', '"manifest": "x", "manifest"', 1), DATA),
        "st_duplicate_key",
    ),
    "no metadata": (changed_header(lambda header: header.pop("__metadata__")), "st_metadata"),
    "no manifest": (changed_header(lambda header: header.update(__metadata__={"format": "pt"})), "st_metadata"),
    "metadata number": (changed_header(lambda header: header["__metadata__"].update(x=1)), "st_metadata"),
    "33 metadata keys": (
        changed_header(lambda header: header["__metadata__"].update({f"k{index}": "" for index in range(32)})),
        "st_metadata",
    ),
    # tensors
    "no tensor": (handmade(arrays={}), "st_tensor_count"),
    "257 tensors": (many_tensors(257), "st_tensor_count"),
    "path as name": (renamed("../../etc/passwd"), "st_name"),
    "NUL in name": (renamed("image.boost\x00"), "st_name"),
    "newline after name": (renamed("image.boost\n"), "st_name"),
    "upper case name": (renamed("Image.boost"), "st_name"),
    "empty name": (renamed(""), "st_name"),
    "name of 129 characters": (renamed("a" * 129), "st_name"),
    "unknown entry field": (with_entry(extra=1), "st_header_json"),
    "entry without shape": (changed_header(lambda header: header["text.features"].pop("shape")), "st_header_json"),
    "bfloat16": (with_entry(dtype="BF16"), "st_dtype"),
    "int64": (with_entry(dtype="I64"), "st_dtype"),
    "dtype is a list": (with_entry(dtype=["F32"]), "st_dtype"),
    "zero dimension": (with_entry(shape=[0, 5]), "st_shape"),
    "negative dimension": (with_entry(shape=[-3, 5]), "st_shape"),
    "scalar": (with_entry(shape=[]), "st_shape"),
    "rank 5": (with_entry(shape=[1, 1, 1, 3, 5]), "st_shape"),
    "dimension of 65,537": (with_entry(shape=[65_537]), "st_shape"),
    "2^24 + 1 elements or more": (with_entry(shape=[65_536, 257]), "st_shape"),
    "float dimension": (with_entry(shape=[3.0, 5]), "st_shape"),
    "true as dimension": (with_entry(shape=[True, 5]), "st_shape"),
    "offset gap": (with_entry(data_offsets=[100, 160]), "st_offsets"),
    "offset overlap": (with_entry(data_offsets=[92, 152]), "st_offsets"),
    "offsets reversed": (with_entry(data_offsets=[156, 96]), "st_offsets"),
    "offsets negative": (with_entry(data_offsets=[-4, 56]), "st_offsets"),
    "offsets too close": (with_entry(data_offsets=[96, 155]), "st_offsets"),
    "three offsets": (with_entry(data_offsets=[96, 156, 156]), "st_offsets"),
    "one byte short": (VALID[:-1], "st_trailing"),
    "one byte more": (VALID + b"\x00", "st_trailing"),
    "a zip appended": (VALID + b"PK\x03\x04", "st_trailing"),
    # the manifest's JSON
    "manifest is no JSON": (handmade("hello"), "manifest_json"),
    "manifest is a list": (handmade("[]"), "manifest_json"),
    "manifest duplicate key": (manifest_text('"format": 1', '"format": 1, "format": 1'), "manifest_json"),
    "manifest NaN": (manifest_text("100.0", "NaN"), "manifest_json"),
    "manifest 1e999": (manifest_text("100.0", "1e999"), "manifest_json"),
    "manifest lone surrogate": (manifest_text("a photo", "\\ud800"), "manifest_json"),
    "manifest integer above 2^53": (manifest_text('"seed": 1', f'"seed": {2**53 + 1}'), "manifest_json"),
    "manifest integer of 5000 digits": (manifest_text('"seed": 1', '"seed": ' + "9" * 5000), "manifest_json"),
    "manifest nested 9 deep": (changed_manifest("provenance.recipe", nested(7)), "manifest_json"),
    # the manifest's fields
    "format 2": (changed_manifest("format", 2), "manifest_invalid"),
    "format true": (changed_manifest("format", True), "manifest_invalid"),
    "domain with a path": (changed_manifest("domain", "../x"), "manifest_invalid"),
    "domain with newline": (changed_manifest("domain", "flowers\n"), "manifest_invalid"),
    "domain reserved": (changed_manifest("domain", "nul"), "manifest_invalid"),
    "domain of 65 characters": (changed_manifest("domain", "a" * 65), "manifest_invalid"),
    "fingerprint upper case": (changed_manifest("backbone.fingerprint", "sha256:" + "AB" * 32), "manifest_invalid"),
    "fingerprint newline": (changed_manifest("backbone.fingerprint", "sha256:" + "ab" * 32 + "\n"), "manifest_invalid"),
    "arch is a path": (changed_manifest("backbone.arch", "../ViT"), "manifest_invalid"),
    "image size 0": (changed_manifest("backbone.image_size", 0), "manifest_invalid"),
    "image size as text": (changed_manifest("backbone.image_size", "224"), "manifest_invalid"),
    "no classes": (changed_manifest("classes", []), "manifest_invalid"),
    "template without braces": (changed_manifest("templates", ["a photo"]), "manifest_invalid"),
    "template that formats": (changed_manifest("templates", ["{} {0.__class__}"]), "manifest_invalid"),
    "257 templates": (changed_manifest("templates", ["{}"] * 257), "manifest_invalid"),
    "logit scale 0": (changed_manifest("logit_scale", 0), "manifest_invalid"),
    "unknown head": (changed_manifest("stack.head", "exec"), "manifest_invalid"),
    "depth 0": (changed_manifest("stack.image.boost", {"depth": 0, "tokens": 3}), "manifest_invalid"),
    "65 tokens": (changed_manifest("stack.image.boost", {"depth": 2, "tokens": 65}), "manifest_invalid"),
    "local time": (changed_manifest("provenance.created", "2026-01-31T12:00:00"), "manifest_invalid"),
    "no such day": (changed_manifest("provenance.created", "2026-02-31T12:00:00Z"), "manifest_invalid"),
    # the manifest against the tensors
    "tensor missing": (handmade(arrays={"image.boost": tensors()["image.boost"]}), "manifest_mismatch"),
    "tensor surplus": (changed_tensor("text.adapt", np.zeros((1, 1, 4), np.float32)), "manifest_mismatch"),
    "unknown tensor": (changed_tensor("pickle", np.zeros(4, np.float32)), "manifest_mismatch"),
    "bias without weight": (changed_tensor("head.bias", np.zeros(3, np.float32)), "manifest_mismatch"),
    "conditional tensor in a static stack": (
        changed_tensor("conditional.w", np.zeros((2, 2), np.float32)),
        "manifest_mismatch",
    ),
    "conditional head without tensors": (
        handmade(
            manifest_fields(stack=manifest_fields()["stack"] | {"head": "conditional"}),
            {"image.boost": tensors()["image.boost"]},
        ),
        "manifest_mismatch",
    ),
    "other depth": (changed_manifest("stack.image.boost", {"depth": 3, "tokens": 2}), "shape_mismatch"),
    "features of 2 classes": (changed_tensor("text.features", np.eye(2, 5, dtype=np.float32)), "shape_mismatch"),
    "head without a share": (class_head(share=None), "manifest_mismatch"),
    "share without a head": (changed_manifest("stack.head_share", 0.5), "manifest_mismatch"),
    "share above 1": (class_head(share=1.01), "manifest_invalid"),
    "share is no number": (class_head(share="all"), "manifest_invalid"),
    "labels of somebody": (changed_manifest("stack.labels", "somebody's"), "manifest_invalid"),
    "head of 4 classes": (class_head(n_classes=4), "shape_mismatch"),
    "head of rank 3": (class_head(head_weight=np.zeros((3, 5, 1), np.float32)), "shape_mismatch"),
    # values
    "NaN": (spoilt("image.boost", np.nan), "nonfinite"),
    "infinity": (spoilt("text.features", -np.inf), "nonfinite"),
    "magnitude over 1e4": (spoilt("image.boost", 10_001.0), "out_of_range"),
    "zero row": (changed_tensor("text.features", np.zeros((3, 5), np.float32)), "out_of_range"),
    "row of length 1.02": (changed_tensor("text.features", np.eye(3, 5, dtype=np.float32) * 1.02), "out_of_range"),
    # class names
    "empty class": (class_names("a", "", "c"), "class_name"),
    "class of 129 characters": (class_names("x" * 129), "class_name"),
    "class over 512 bytes": (class_names("\U0001f600" * 128 + "x"), "class_name"),
    "class not NFC": (class_names("e\u0301"), "class_name"),
    "class with a bidi override": (class_names("a\u202eb"), "class_name"),
    "class with newline": (class_names("a\nb"), "class_name"),
    "class with escape sequence": (class_names("\x1b[31m"), "class_name"),
    "class with line separator": (class_names("a\u2028b"), "class_name"),
    "class of private use": (class_names("\ue000"), "class_name"),
    "class with edge space": (class_names("a "), "class_name"),
    "class with edge no-break space": (class_names("\u00a0a"), "class_name"),
    "same class twice": (class_names("cat", "cat"), "class_duplicate"),
    "same but for case": (class_names("Strasse", "straße"), "class_duplicate"),
    "same but for width": (class_names("cat", "\uff43at"), "class_duplicate"),
}

ACCEPTED = {
    "handmade": VALID,
    "spaces as padding": raw_file(HEADER_TEXT, DATA, pad=b"  "),
    "header at the limit": raw_file(HEADER_TEXT, DATA, pad=b" " * (MAX_HEADER_BYTES - len(HEADER_TEXT.encode()))),
    "32 metadata keys": changed_header(
        lambda header: header["__metadata__"].update({f"k{index}": "" for index in range(31)})
    ),
    "manifest nested 8 deep": changed_manifest("provenance.recipe", {"x": nested(5)}),
    "integer of 2^53": manifest_text('"seed": 1', f'"seed": {2**53}'),
    "domain of 64 characters": changed_manifest("domain", "a" * 64),
    "256 templates": changed_manifest("templates", ["{}"] * 256),
    "magnitude of 1e4": spoilt("image.boost", 10_000.0),
    "class of 128 characters": class_names("x" * 128),
    "class of 512 bytes": class_names("\U0001f600" * 128),
    "class with joiners": class_names("\U0001f469\u200d\U0001f4bb", "\u0645\u06cc\u200c\u062e"),
    "row of length 1.005": changed_tensor("text.features", np.eye(3, 5, dtype=np.float32) * 1.005),
    "class head": class_head(),
    "share of 1": class_head(share=1),
}
