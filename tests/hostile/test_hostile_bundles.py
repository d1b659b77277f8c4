"""Every rule of the format at its limit and one beyond it; what is refused leaves no trace in a store."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from prompt_store import BundleInvalidError, LimitExceededError, Store, read_bundle
from prompt_store.header import MAX_BUNDLE_BYTES, MAX_HEADER_BYTES
from tests.hostile.bundle_rules import ACCEPTED, REFUSED, changed_manifest, class_names, many_tensors, renamed
from tests.prompt_store.samples import raw_file, sample_bundle, tree


@pytest.mark.parametrize("item", ["[]", "{}", "1000", '""', '{"a":1}'])
@pytest.mark.parametrize("where", ["header", "manifest"])
def test_a_header_of_many_values_takes_little_memory(item, where):
    text = '{"a":[' + (item + ",") * (MAX_HEADER_BYTES // (2 * len(item) + 2)) + item + "]}"
    data = raw_file(text if where == "header" else json.dumps({"__metadata__": {"manifest": text}}), b"")
    tracemalloc.start()
    with pytest.raises(BundleInvalidError):
        read_bundle(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(data) + 16 * 2**20


@pytest.mark.parametrize(("data", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_a_violation_is_rejected_with_its_code(data, code):
    codes = set()
    for _ in range(2):
        with pytest.raises(BundleInvalidError) as caught:
            read_bundle(data)
        codes.add(caught.value.code)

    assert codes == {code}
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_file_at_the_limit_is_accepted(data):
    assert read_bundle(data).digest.startswith("sha256:")


def test_a_bundle_over_64_mib_is_rejected_before_parsing():
    with pytest.raises(LimitExceededError) as caught:
        read_bundle(bytes(MAX_BUNDLE_BYTES + 1))

    assert caught.value.code == "too_large"
    assert caught.value.limit == MAX_BUNDLE_BYTES


def test_256_tensors_pass_the_count_check():
    with pytest.raises(BundleInvalidError, match="do not match the manifest") as caught:
        read_bundle(many_tensors(256))

    assert caught.value.code == "manifest_mismatch"


def test_an_error_never_repeats_unvalidated_text():
    secret = "Zq9-attack"
    files = [
        renamed(secret),
        changed_manifest("domain", secret),
        changed_manifest("stack.head", secret),
        changed_manifest("provenance.data_digests", {secret: 1}),
        class_names(secret + "\n"),
    ]
    for data in files:
        with pytest.raises(BundleInvalidError) as caught:
            read_bundle(data)
        assert secret not in f"{caught.value} {caught.value.field}"


def test_a_rejected_bundle_leaves_the_store_unchanged(tmp_path):
    store = Store.open(tmp_path / "store")
    store.add("flowers", sample_bundle())
    store.activate("flowers", 1)
    before = tree(tmp_path)

    for data, _ in REFUSED.values():
        with pytest.raises(BundleInvalidError):
            store.add("flowers", data)

    assert tree(tmp_path) == before


@pytest.mark.parametrize("domain", ["../flowers", "flowers/..", "/etc", "", ".", "Flowers", "a--b", "a-", "con", "a\n"])
def test_a_domain_that_looks_like_a_path_touches_no_file(tmp_path, domain):
    store = Store.open(tmp_path / "store")
    before = tree(tmp_path)

    with pytest.raises(BundleInvalidError) as caught:
        store.add(domain, sample_bundle())

    assert caught.value.code == "name_invalid"
    assert tree(tmp_path) == before


def test_random_damage_is_rejected_or_still_a_valid_bundle():
    rng = np.random.default_rng(7)
    data = sample_bundle()
    for _ in range(600):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        cut = damaged[: rng.integers(len(data))] if rng.random() < 0.3 else damaged
        try:
            bundle = read_bundle(bytes(cut))
        except BundleInvalidError:
            continue
        assert set(bundle.tensors) == {"image.boost", "text.features"}


def test_every_error_code_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "bundle-format.md").read_text(encoding="utf-8")

    assert {code for _, code in REFUSED.values() if f"`{code}`" not in page} == set()
