"""Validation of tensors and manifest for each kind of head."""

import copy

import numpy as np
import pytest

from prompt_store import BundleInvalidError, Manifest, read_bundle, write_bundle
from prompt_store.bundle import dump_manifest, parse_manifest
from prompt_store.contents import HEAD_SHAPES, head_kind
from prompt_store.strict_json import dump_canonical
from tests.prompt_store.samples import handmade, manifest_fields

SIZES = {"K": 3, "E": 5, "F": 7, "H": 2, "W": 4}
GROUP = {"depth": 1, "tokens": 2}
STACKS = {
    "plain": {},
    "class": {"head_share": 0.7},
    "projector": {"labels": "own"},
    "conditional": {"head": "conditional", "text": {"boost": {"depth": 2, "tokens": 3}, "adapt": GROUP}},
}
KINDS = pytest.mark.parametrize("kind", STACKS)
TENSORS_OF_KINDS = [(kind, name) for kind, shapes in HEAD_SHAPES.items() for name in shapes]


def sample(kind, **stack):
    """Manifest fields and tensors of a valid bundle with that kind of head; `stack` changes its stack."""
    fields = copy.deepcopy(manifest_fields())
    fields["stack"] |= STACKS[kind] | stack
    arrays = {
        f"{tower}.{part}": np.ones((group["depth"], group["tokens"], SIZES["W"]), np.float32)
        for tower in ("image", "text")
        for part, group in fields["stack"][tower].items()
        if group is not None
    }
    for name, letters in HEAD_SHAPES[kind].items():
        arrays[name] = np.ones([SIZES[letter] for letter in letters], np.float32)
    if "text.features" in arrays:
        arrays["text.features"] /= np.linalg.norm(arrays["text.features"], axis=1, keepdims=True)
    return fields, arrays


def refused(fields, arrays):
    """The error that both reading and writing give."""
    with pytest.raises(BundleInvalidError) as caught:
        read_bundle(handmade(fields, arrays))
    with pytest.raises(BundleInvalidError) as written:
        write_bundle(Manifest.model_validate(fields), arrays)
    assert (written.value.code, written.value.field) == (caught.value.code, caught.value.field)
    return caught.value


@KINDS
def test_every_kind_of_head_round_trips(kind):
    fields, arrays = sample(kind)
    data = write_bundle(Manifest.model_validate(fields), arrays)
    bundle = read_bundle(data)

    assert head_kind(bundle.manifest.stack, bundle.tensors) == kind
    assert set(bundle.tensors) == set(arrays)
    assert write_bundle(bundle.manifest, bundle.tensors) == data


@pytest.mark.parametrize("share", [0, 1, 0.0, 1.0])
def test_a_head_share_may_be_zero_or_one(share):
    fields, arrays = sample("class", head_share=share)

    assert read_bundle(handmade(fields, arrays)).manifest.stack.head_share == share


def test_a_static_head_may_be_restricted_to_its_own_labels():
    for kind in STACKS:
        fields, arrays = sample(kind, labels="own")
        assert read_bundle(handmade(fields, arrays)).manifest.stack.labels == "own"


@pytest.mark.parametrize(("kind", "name"), TENSORS_OF_KINDS)
def test_a_missing_tensor_of_a_head_is_named(kind, name):
    fields, arrays = sample(kind)
    del arrays[name]
    error = refused(fields, arrays)

    assert (error.code, error.field) == ("manifest_mismatch", name)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("plain", "conditional.linear1.weight"),
        ("class", "conditional.linear1.weight"),
        ("class", "head.extra"),
        ("projector", "head.hidden.scale"),
        ("projector", "conditional.linear2.bias"),
        ("conditional", "conditional.linear3.weight"),
        ("conditional", "text.features"),
        ("conditional", "head.weight"),
        ("conditional", "head.hidden.weight"),
    ],
)
def test_an_unexpected_tensor_is_named(kind, name):
    fields, arrays = sample(kind)
    arrays[name] = np.ones((3, 5), np.float32)
    error = refused(fields, arrays)

    assert (error.code, error.field) == ("manifest_mismatch", name)


def padded(array, axis):
    """One row or column more."""
    return np.pad(array, [(0, 1 if one == axis else 0) for one in range(array.ndim)])


CHANGES = {
    "longer": lambda array: padded(array, 0),
    "wider": lambda array: padded(array, array.ndim - 1),
    "one number": lambda array: array.reshape(-1)[:1],
    "one axis more": lambda array: array[..., None],
}
# Nothing in the bundle says how wide the joint space is; the backbone does, when the bundle is loaded.
FREE = {
    ("plain", "text.features", "wider"),
    ("projector", "head.hidden.weight", "wider"),
    ("conditional", "conditional.linear1.weight", "wider"),
}


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [(*pair, change) for pair in TENSORS_OF_KINDS for change in CHANGES if (*pair, change) not in FREE],
)
def test_a_tensor_with_the_wrong_shape_is_rejected(kind, name, change):
    fields, arrays = sample(kind)
    arrays[name] = CHANGES[change](arrays[name])
    error = refused(fields, arrays)

    assert error.code == "shape_mismatch"
    assert error.field in HEAD_SHAPES[kind]


@pytest.mark.parametrize(
    ("kind", "changes", "field", "reason"),
    [
        ("class", {"head_share": None}, "stack.head_share", "must be set"),
        ("plain", {"head_share": 0.5}, "head.bias", "Missing: head.bias, head.weight"),
        ("projector", {"head_share": 0.5}, "stack.head_share", "null"),
        ("conditional", {"head_share": 0.5}, "stack.head_share", "null"),
        ("projector", {"labels": "any"}, "stack.labels", "own"),
        ("conditional", {"text": {"boost": None, "adapt": None}}, "stack.text.adapt", "must have depth 1"),
        ("conditional", {"text": {"adapt": {"depth": 2, "tokens": 2}}}, "stack.text.adapt", "must have depth 1"),
    ],
)
def test_contradictory_manifest_fields_are_rejected(kind, changes, field, reason):
    error = refused(*sample(kind, **changes))

    assert (error.code, error.field) == ("manifest_mismatch", field)
    assert reason in str(error)


@pytest.mark.parametrize("templates", [[], ["{}.", "a {}."]])
def test_a_conditional_head_has_one_template(templates):
    fields, arrays = sample("conditional")
    error = refused(fields | {"templates": templates}, arrays)

    assert (error.code, error.field) == ("manifest_mismatch", "templates")


def test_a_conditional_head_has_no_class_specific_context():
    fields, arrays = sample("conditional")
    arrays["text.adapt"] = np.ones((3, 1, 2, 4), np.float32)

    assert refused(fields, arrays).code == "shape_mismatch"


@pytest.mark.parametrize(
    ("field", "value"),
    [("labels", "some"), ("labels", None), *(("head_share", value) for value in (-0.1, 1.1, "0.5", True))],
)
def test_field_values_are_bounded(field, value):
    with pytest.raises(BundleInvalidError) as caught:
        read_bundle(handmade(*sample("class", **{field: value})))

    assert (caught.value.code, caught.value.field) == ("manifest_invalid", f"stack.{field}")


def test_a_bundle_without_head_fields_keeps_its_bytes():
    manifest = parse_manifest(dump_canonical(manifest_fields()))

    assert (manifest.stack.labels, manifest.stack.head_share) == ("any", None)
    assert dump_manifest(manifest) == dump_canonical(manifest_fields())


@pytest.mark.parametrize("kind", ["plain", "projector", "conditional"])
def test_only_a_class_head_may_read_unit_features(kind):
    assert refused(*sample(kind, head_input="unit")).field == "stack.head_input"
    fields, arrays = sample("class", head_input="unit")
    assert read_bundle(handmade(fields, arrays)).manifest.stack.head_input == "unit"


def calibrated(**calibration):
    fields, arrays = sample("class")
    return fields | {"calibration": calibration}, arrays


def test_a_calibration_round_trips_and_keeps_unknown_fields():
    fields, arrays = calibrated(temperature=2.5, abstain={"0.05": 0.31, "0.1": 0}, method="conformal")
    data = write_bundle(Manifest.model_validate(fields), arrays)
    found = read_bundle(data).manifest
    assert found.calibration.model_dump() == fields["calibration"]
    assert write_bundle(found, arrays) == data


@pytest.mark.parametrize(
    "calibration",
    [
        {},
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": 2000.0},
        {"temperature": "1"},
        {"temperature": 1.0, "abstain": {"5 %": 0.1}},
        {"temperature": 1.0, "abstain": {"1.5": 0.1}},
        {"temperature": 1.0, "abstain": {"0.05": 1.1}},
        {"temperature": 1.0, "abstain": {"0.05": None}},
        {"temperature": 1.0, "abstain": {f"0.{index:04}": 0.1 for index in range(17)}},
    ],
    ids=str,
)
def test_an_invalid_calibration_is_rejected(calibration):
    with pytest.raises(BundleInvalidError) as caught:
        read_bundle(handmade(*calibrated(**calibration)))
    assert caught.value.code == "manifest_invalid"
    assert caught.value.field.startswith("calibration")


@KINDS
def test_fields_at_their_defaults_do_not_change_the_digest(kind):
    fields, arrays = sample(kind)
    explicit = fields | {"calibration": None}
    explicit["stack"] = fields["stack"] | {"head_input": "embedding"}
    assert write_bundle(Manifest.model_validate(explicit), arrays) == write_bundle(
        Manifest.model_validate(fields), arrays
    )
    assert b"head_input" not in dump_manifest(Manifest.model_validate(explicit))
