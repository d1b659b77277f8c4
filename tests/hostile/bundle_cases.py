"""More than 400 bundles that must be refused, each with its code, and 40 that must be read, from one seed."""

import copy
import itertools
import json
import random

import numpy as np

from tests.hostile.bundle_rules import (
    ACCEPTED,
    DATA,
    HEADER_TEXT,
    REFUSED,
    VALID,
    changed_manifest,
    changed_tensor,
    class_head,
    class_names,
    manifest_text,
    renamed,
    spoilt,
    with_entry,
)
from tests.hostile.cases import refused
from tests.prompt_store.samples import handmade, manifest_fields, raw_file, tensors

HEADER_END = 8 + len(HEADER_TEXT.encode())
REQUIRED = (
    "domain", "backbone", "backbone.arch", "backbone.fingerprint", "backbone.image_size", "classes", "templates",
    "logit_scale", "stack", "stack.head", "stack.image", "stack.text", "provenance", "provenance.method",
    "provenance.phase", "provenance.code_version", "provenance.created",
)  # fmt: skip
WRONG_TYPES = {
    "format": ("1", None, 1.0, [1]), "domain": (1, None, ["flowers"]), "backbone": ("x", None, []),
    "backbone.arch": (5, None), "backbone.fingerprint": (7, None, "ab" * 32),
    "backbone.image_size": (None, 224.0, True),
    "backbone.preprocess": ("x", [1]), "classes": ("abc", None, {}, [1], [None], [{"name": "a"}], [["a", "b"]]),
    "templates": ("{}", None, [1], [None]), "logit_scale": ("100", None, [100], -1.0, 10_001.0),
    "stack": ([], None, "static"), "stack.head": (1, None, "Static"), "stack.image": ([], "boost"),
    "stack.text.boost": ([], {}, {"depth": 1}, {"tokens": 1}, {"depth": 1.0, "tokens": 1}, {"depth": 65, "tokens": 1}),
    "stack.head_input": ("pixels", 1),
    "calibration": ([], {"temperature": 0}, {"temperature": 1, "abstain": {"1": 0.5}}),
    "provenance": ([], None), "provenance.method": ("", 1, "x" * 65), "provenance.phase": ("train", None),
    "provenance.seed": ("1", 1.5), "provenance.recipe": ([], "x"), "provenance.data_digests": ({"a": 1}, []),
    "provenance.created": ("yesterday", 0, "2026-01-31", "2026-01-31T12:00:00+01:00", "2026-01-31T25:00:00Z"),
}  # fmt: skip
DTYPES = ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F64", "BF16", "F8_E4M3", "F8_E5M2", "C64",
          "f32", "float32", "", "F32 ", "F3\u0332", None, 32, True, {"F32": 1}, ["F16"])  # fmt: skip
SHAPES = ([], [0], [3, 0], [0, 0], [-1, 5], [3, -5], [3, 5.0], ["3", 5], [None], [True, 15], [[3, 5]], "35", None, 15,
          {"0": 3}, [65_537], [1, 65_537], [65_536, 65_536], [65_536, 65_536, 65_536, 65_536], [1, 1, 1, 1, 15],
          [2**53, 1], [2**40, 2**40])  # fmt: skip
OFFSETS = ([], [96], [96, 156, 156], [156, 96], [-60, 0], [96.0, 156], ["96", "156"], [None, 156], [True, 61], "96:156",
           None, [95, 155], [97, 157], [0, 60], [96, 155], [96, 157], [96, 96], [2**52, 2**52 + 60],
           [2**53 - 60, 2**53],
           {"0": 96})  # fmt: skip
NAMES = ("../x", "..\\x", "/etc/passwd", "C:\\x", "image/boost", "a b", "a\tb", "a\0", "\0", "a\nb", "\u202eabc", "é",
         "e\u0301", "\uff41", "A", "image-boost", "%2e%2e", "$(id)", "{}", "<b>", "'", '"', "a" * 129, "",
         "__proto__ ", "a,b", "a;b", "~", "*")  # fmt: skip
CLASS_NAMES = ("", " ", "a ", " a", "\ta", "a\u00a0", "\u3000a", "\u2003", "a\0", "a\x07", "a\x1b[2J", "a\x7f",
               "a\x9b31m",
               "a\rb", "a\u2029b", "\ufeffa", "a\u200b", "a\u200e", "a\u2066b", "a\u202a", "a\ufff9", "\ue001",
               "\U000f0000",
               "\u0378", "\ufdd0", "e\u0301", "\u212b", "\uac00\u11a8", "x" * 129, "\u20ac" * 128 + "xx",
               "\U0001f600" * 129)  # fmt: skip
TWINS = (("cat", "CAT"), ("\u00df", "ss"), ("\ufb01n", "fin"), ("\u2460", "1"), ("\u00b5", "\u03bc"), ("\u017f", "s"),
         ("a b", "a\u00a0b"), ("\uff11", "1"), ("x\u00b2", "x2"), ("\u01c4", "d\u017e"))  # fmt: skip
DOMAINS = ("", ".", "..", "../x", "x/..", "/x", "x/y", "a b", "A", "1a", "-a", "a-", "a--b", "a_b", "a.b",
           "\u0430bc", "a\0",
           "a\n", "con", "nul", "com1", "lpt9", "v1", "v2", "a" * 65, "%2e", "a\u200b")  # fmt: skip
JSON_TEXTS = ("", " ", "null", "true", "1", '"x"', "[1]", "{", "}", "{]", '{"a"}', "{'a': 1}", '{"a": 1,}', '{"a": 01}',
              '{"a": +1}', '{"a": .5}', '{"a": 1.}', '{"a": NaN}', '{"a": Infinity}', '{"a": -Infinity}',
              '{"a": 1e400}',
              '{"a": 0x1}', '{"a": 1} {"b": 2}', '{"a": 1} x', '{"a": "\\x41"}', '{"a": "\\ud800"}', '{"a": "\t"}',
              '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', '{"\\u0061": 1, "a": 1}', "\ufeff{}", "// x\n{}",
              '{"a": ' + "[" * 9 + "]" * 9 + "}", '{"a": ' + "[" * 50_000, '{"a": ' + "9" * 4_400 + "}",
              '{"a": 9007199254740993}', '{"a": -9007199254740993}')  # fmt: skip


def headers_cut(rng):
    """Cut in the length or in the header."""
    yield from (VALID[:end] for end in range(9))
    yield from (VALID[:end] for end in rng.sample(range(9, HEADER_END), 40))


def wrong_lengths(rng):
    lengths = (0, 1, 2**16, 2**24, 2**31, 2**32, 2**63, 2**64 - 1, HEADER_END * 10)
    yield from (n.to_bytes(8, "little") + VALID[8:] for n in lengths)
    yield from ((4 * 2**20 + 1 + rng.randrange(2**30)).to_bytes(8, "little") + VALID[8:] for _ in range(10))


def wrong_ends(rng):
    """Cut in the tensors, or with bytes behind them."""
    yield from (VALID[:end] for end in rng.sample(range(HEADER_END, len(VALID)), 30))
    yield from (VALID + rng.randbytes(n) for n in (1, 2, 7, 8, 60, 4_096))


def without(path):
    fields = copy.deepcopy(manifest_fields())
    *parents, last = path.split(".")
    target = fields
    for key in parents:
        target = target[key]
    del target[last]
    return handmade(fields)


def not_finite(rng):
    for name, value in itertools.product(("image.boost", "text.features"), (np.nan, np.inf, -np.inf)):
        for at in rng.sample(range(15), 5):
            array = tensors()[name].copy()
            array.flat[at] = value
            yield changed_tensor(name, array)


def too_large(rng):
    for value in (10_000.01, -10_000.01, 6e4, 1e30, -3e38):
        yield spoilt("image.boost", value)
    for length in (0.0, 1e-30, 0.5, 0.98, 1.02, 2.0):
        features = tensors()["text.features"].copy()
        features[rng.randrange(3)] *= length
        yield changed_tensor("text.features", features)


def other_shapes():
    for shape in ((3, 2, 4), (2, 2, 4), (1, 3, 4), (2, 3), (2, 3, 4, 1), (24,), (3, 3, 2, 4)):
        yield changed_tensor("image.boost", np.zeros(shape, np.float32))
    for rows in (1, 2, 4, 30):
        yield changed_tensor("text.features", np.eye(rows, 5 + rows, dtype=np.float32))
    yield changed_tensor("text.features", np.ones((3, 5, 1), np.float32))
    yield from (class_head(n_classes=n) for n in (1, 2, 5))


def other_tensors():
    extra = np.zeros((2, 3, 4), np.float32)
    for name in ("text.boost", "text.adapt", "image.adapt", "conditional.linear1.weight", "head.hidden.bias", "a", "_"):
        yield changed_tensor(name, extra)
    for name in tensors():
        yield handmade(arrays={other: array for other, array in tensors().items() if other != name})


def refused_bundles(seed=0):
    """The corpus of bundles that break a rule."""
    rng = random.Random(seed)  # noqa: S311
    rules = [case for name, (data, code) in REFUSED.items() for case in refused(f"rule, {name}", [data], 422, code)]
    wrong_types = (changed_manifest(path, value) for path, values in WRONG_TYPES.items() for value in values)
    return [
        *rules,
        *refused("header cut", headers_cut(rng), 422, "st_header_length"),
        *refused("header length", wrong_lengths(rng), 422, "st_header_length"),
        *refused("end", wrong_ends(rng), 422, "st_trailing"),
        *refused("field missing", map(without, REQUIRED), 422, "manifest_invalid"),
        *refused("field type", wrong_types, 422, "manifest_invalid"),
        *refused("dtype", (with_entry(dtype=dtype) for dtype in DTYPES), 422, "st_dtype"),
        *refused("shape", (with_entry(shape=shape) for shape in SHAPES), 422, "st_shape"),
        *refused("offsets", (with_entry(data_offsets=offsets) for offsets in OFFSETS), 422, "st_offsets"),
        *refused("tensor name", map(renamed, NAMES), 422, "st_name"),
        *refused("class name", (class_names("tulip", name) for name in CLASS_NAMES), 422, "class_name"),
        *refused("class twice", (class_names(*names) for names in TWINS), 422, "class_duplicate"),
        *refused("domain", (changed_manifest("domain", name) for name in DOMAINS), 422, "manifest_invalid"),
        *refused("manifest text", (handmade(text) for text in JSON_TEXTS), 422, "manifest_json"),
        *refused("not finite", not_finite(rng), 422, "nonfinite"),
        *refused("too large", too_large(rng), 422, "out_of_range"),
        *refused("other shape", other_shapes(), 422, "shape_mismatch"),
        *refused("other tensors", other_tensors(), 422, "manifest_mismatch"),
    ]


def accepted_bundles(seed=0):
    """The corpus of unusual bundles within the rules, by name."""
    rng = random.Random(seed)  # noqa: S311
    named = dict(ACCEPTED)
    for n_classes in (1, 2, 100, 10_000):
        names = tuple(f"class {n}" for n in range(n_classes))
        named[f"{n_classes} classes"] = handmade(manifest_fields(class_names=names), tensors(n_classes=n_classes))
    for name in (
        "\u5bff\u53f8",
        "caf\u00e9",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
        "\U0001f339",
        "a" * 128,
        "'\"<&>",
        "{}",
        "..",
        "NaN",
    ):
        named[f"class {name[:8]}"] = class_names("tulip", name)
    for depth, tokens in ((1, 1), (64, 1), (1, 64), (12, 8)):
        group = {"boost": {"depth": depth, "tokens": tokens}, "adapt": None}
        stack = manifest_fields()["stack"] | {"image": group}
        array = np.zeros((depth, tokens, 4), np.float32)
        named[f"{depth} x {tokens} tokens"] = handmade(manifest_fields(stack=stack), tensors() | {"image.boost": array})
    named["half precision"] = handmade(arrays=tensors(dtype=np.float16))
    named["unknown fields"] = manifest_text('"format": 1', '"format": 1, "licence": {"name": "x", "terms": [1, 2]}')
    named["escaped text"] = manifest_text("a photo", "\\u0061 ph\\u006fto")
    for n in range(6):
        named[f"share {n}"] = class_head(share=round(rng.random(), 3))
    named["tensors in another order"] = raw_file(json.dumps(dict(reversed(json.loads(HEADER_TEXT).items()))), DATA)
    return named
