"""Writing and reading bundles: canonical, lossless, unknown fields preserved."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prompt_store import (
    BundleInvalidError,
    Manifest,
    check_digest,
    digest_bytes,
    is_domain,
    peek_manifest,
    read_bundle,
    write_bundle,
)
from prompt_store.manifest import check_domain
from prompt_store.strict_json import StrictJsonError, dump_canonical, load_object
from tests.prompt_store.samples import handmade, manifest_fields, sample_bundle, tensors

NAMES = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(NAMES, children, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tensors_come_back_bit_for_bit(dtype):
    written = tensors(dtype=dtype)
    bundle = read_bundle(write_bundle(Manifest.model_validate(manifest_fields()), written))

    assert set(bundle.tensors) == set(written)
    for name, array in written.items():
        assert bundle.tensors[name].dtype == array.dtype
        assert bundle.tensors[name].tobytes() == array.tobytes()
        assert bundle.tensors[name].flags.owndata
        assert bundle.tensors[name].flags.writeable


def test_the_same_content_gives_the_same_bytes_in_any_order():
    manifest = Manifest.model_validate(manifest_fields())
    backwards = Manifest.model_validate(dict(reversed(manifest_fields().items())))
    arrays = tensors()
    strided = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in reversed(arrays.items())}

    assert write_bundle(backwards, strided) == write_bundle(manifest, arrays)


def test_the_safetensors_library_reads_what_we_write_and_we_read_what_it_writes():
    data = sample_bundle()
    theirs = safetensors.numpy.load(data)
    text = dump_canonical(manifest_fields()).decode()

    assert {name: array.tobytes() for name, array in theirs.items()} == {
        name: array.tobytes() for name, array in read_bundle(data).tensors.items()
    }
    assert read_bundle(safetensors.numpy.save(theirs, {"manifest": text})).manifest.domain == "flowers"


def test_data_starts_at_a_multiple_of_8():
    for length in range(8):
        data = sample_bundle(note="x" * length)
        assert int.from_bytes(data[:8], "little") % 8 == 0


@settings(deadline=None, max_examples=60)
@given(recipe=st.dictionaries(NAMES, JSON, max_size=3), unknown=JSON, seed=st.integers(0, 1000))
def test_read_then_write_gives_the_same_file(recipe, unknown, seed):
    fields = manifest_fields()
    fields["provenance"]["recipe"] = recipe
    fields["stack"]["later"] = unknown
    fields["later"] = unknown
    try:
        data = write_bundle(Manifest.model_validate(fields), tensors(seed))
    except BundleInvalidError as error:
        assume(error.code != "manifest_json")  # nested too deep to be a manifest
        raise
    bundle = read_bundle(data)

    assert write_bundle(bundle.manifest, bundle.tensors) == data
    assert bundle.manifest.model_extra == {"later": unknown}


def test_unknown_fields_are_kept_at_every_level():
    fields = manifest_fields(later={"a": [1]})
    fields["backbone"]["patch"] = 16
    fields["classes"][0]["synonyms"] = ["tulipa"]
    bundle = read_bundle(handmade(fields))
    again = peek_manifest(write_bundle(bundle.manifest, bundle.tensors)).model_dump()

    assert again["later"] == {"a": [1]}
    assert again["backbone"]["patch"] == 16
    assert again["classes"][0]["synonyms"] == ["tulipa"]


def test_plain_per_class_and_conditional_stacks_are_valid_bundles():
    def stack(head="static", **text):
        return {"head": head, "image": {"boost": None, "adapt": None}, "text": {"boost": None, "adapt": None} | text}

    features = {"text.features": tensors()["text.features"]}
    group = {"depth": 1, "tokens": 2}
    per_class = features | {"text.adapt": np.ones((3, 1, 2, 4), np.float16)}
    conditional = {
        "text.adapt": np.ones((1, 2, 4), np.float32),
        "conditional.linear1.weight": np.ones((2, 5), np.float32),
        "conditional.linear1.bias": np.ones(2, np.float32),
        "conditional.linear2.weight": np.ones((4, 2), np.float32),
        "conditional.linear2.bias": np.ones(4, np.float32),
    }

    read_bundle(handmade(manifest_fields(stack=stack()), features))
    read_bundle(handmade(manifest_fields(stack=stack(adapt=group)), per_class))
    read_bundle(handmade(manifest_fields(stack=stack("conditional", adapt=group)), conditional))


def test_the_groups_of_a_tower_have_one_width():
    group = {"depth": 1, "tokens": 2}
    stack = {"head": "static", "image": {"boost": group, "adapt": group}, "text": {"boost": None, "adapt": None}}
    arrays = {"image.boost": np.ones((1, 2, 4), np.float32), "image.adapt": np.ones((1, 2, 6), np.float32)}
    with pytest.raises(BundleInvalidError) as caught:
        read_bundle(handmade(manifest_fields(stack=stack), arrays | {"text.features": tensors()["text.features"]}))

    assert (caught.value.code, caught.value.field) == ("shape_mismatch", "image.adapt")


def test_write_rejects_what_read_would_reject():
    manifest = Manifest.model_validate(manifest_fields())
    with pytest.raises(BundleInvalidError) as caught:
        write_bundle(manifest, tensors() | {"image.boost": np.ones((2, 3, 4))})
    assert caught.value.code == "st_dtype"
    with pytest.raises(BundleInvalidError) as caught:
        write_bundle(manifest, {"text.features": tensors()["text.features"]})
    assert caught.value.code == "manifest_mismatch"
    with pytest.raises(BundleInvalidError) as caught:
        write_bundle(manifest.model_copy(update={"later": {1, 2}}), tensors())
    assert caught.value.code == "manifest_json"


@given(data=st.binary(max_size=200))
def test_a_digest_is_checked_for_form_and_value(data):
    digest = digest_bytes(data)

    assert check_digest(data, digest) == digest
    for wrong, code in ((digest.upper(), "digest_invalid"), (digest + "\n", "digest_invalid")):
        with pytest.raises(BundleInvalidError) as caught:
            check_digest(data, wrong)
        assert caught.value.code == code
    with pytest.raises(BundleInvalidError) as caught:
        check_digest(data + b"x", digest)
    assert caught.value.code == "digest_mismatch"


@given(value=st.dictionaries(NAMES, JSON, max_size=4))
def test_canonical_json_round_trips(value):
    try:
        again = load_object(dump_canonical(value))
    except StrictJsonError as error:
        assume("nested" not in str(error))
        raise
    assert again == json.loads(json.dumps(value))


@given(st.from_regex(r"domain[a-z0-9]{4,20}(-[a-z0-9]{1,9}){0,3}", fullmatch=True))
def test_a_name_that_matches_the_pattern_is_a_domain(name):
    assert is_domain(name)
    assert not is_domain(name + "-")
    assert not is_domain(name + "\n")
    assert not is_domain("-" + name)


@pytest.mark.parametrize(
    ("name", "proposed"),
    [("Our Pets", "our-pets"), ("Café_2", "cafe-2"), ("screws--line", "screws-line"), ("x" * 100, "x" * 64)],
)
def test_an_invalid_domain_name_comes_with_a_valid_one(name, proposed):
    with pytest.raises(BundleInvalidError, match=f", for example {proposed};"):
        check_domain(name)


@pytest.mark.parametrize("name", ["", "2026", "写真", "CON", "-" * 100])
def test_without_a_valid_name_that_resembles_it_none_is_proposed(name):
    with pytest.raises(BundleInvalidError, match="at most 64 characters; some names"):
        check_domain(name)
