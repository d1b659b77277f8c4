"""Do the tensors of a bundle fit its manifest, and are their values fit to serve?

Knows which tensors each kind of stack has, and their shapes. Does not know files; takes shapes and arrays.
Legend: D depth, P tokens, W tower width, K classes, E joint dimension.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prompt_store.class_names import check_name, check_unique
from prompt_store.errors import BundleInvalidError
from prompt_store.manifest import GroupsSpec, Manifest

MAX_ABS_VALUE: Final = 1e4  # far above any prompt, below float16's overflow
UNIT_NORM_TOLERANCE: Final = 1e-2
FEATURES: Final = "text.features"
HEAD_WEIGHT: Final = "head.weight"
HEAD_BIAS: Final = "head.bias"
CONDITIONAL_PREFIX: Final = "conditional."

Shape = tuple[int, ...]


def _mismatch(field: str, expected: str) -> BundleInvalidError:
    return BundleInvalidError(
        "shape_mismatch", f"{field}: expected {expected}; write the bundle from the stack it describes", field=field
    )


def _show(shape: Shape | None) -> str:
    return "none" if shape is None else str(list(shape))


def _group_names(tower: str, groups: GroupsSpec) -> list[str]:
    present = {"boost": groups.boost is not None, "adapt": groups.adapt is not None}
    return [f"{tower}.{group}" for group, is_present in present.items() if is_present]


def _check_tensor_set(manifest: Manifest, names: set[str]) -> None:
    stack = manifest.stack
    required = {*_group_names("image", stack.image), *_group_names("text", stack.text)}
    optional: set[str] = {HEAD_WEIGHT}
    if HEAD_WEIGHT in names:
        optional.add(HEAD_BIAS)
    if stack.head == "static":
        required.add(FEATURES)
    else:
        optional |= {name for name in names if name.startswith(CONDITIONAL_PREFIX)}
    missing, surplus = sorted(required - names), sorted(names - required - optional)
    if missing or surplus:
        raise BundleInvalidError(
            "manifest_mismatch",
            f"expected the tensors that the manifest's stack names; missing: {', '.join(missing) or 'none'}; "
            f"not in the stack: {', '.join(surplus) or 'none'}",
            field=(missing or surplus)[0],
        )
    if stack.head == "conditional" and not any(name.startswith(CONDITIONAL_PREFIX) for name in names):
        raise BundleInvalidError(
            "manifest_mismatch", "expected conditional.* tensors for a conditional head, found none", field="stack.head"
        )


def _check_tower(tower: str, groups: GroupsSpec, shapes: Mapping[str, Shape], n_classes: int) -> None:
    widths: dict[str, int] = {}
    for group, spec in (("boost", groups.boost), ("adapt", groups.adapt)):
        if spec is None:
            continue
        name = f"{tower}.{group}"
        shape = shapes[name]
        plain = (spec.depth, spec.tokens)
        is_plain = len(shape) == 3 and shape[:2] == plain
        is_per_class = name == "text.adapt" and len(shape) == 4 and shape[:3] == (n_classes, *plain)
        if not (is_plain or is_per_class):
            raise _mismatch(name, f"[{spec.depth}, {spec.tokens}, width] as in the manifest, found {_show(shape)}")
        widths[name] = shape[-1]
    if len(set(widths.values())) > 1:
        raise _mismatch(f"{tower}.adapt", f"the width of {tower}.boost, found {sorted(set(widths.values()))}")


def _check_head(shapes: Mapping[str, Shape], n_classes: int) -> None:
    features, weight, bias = (shapes.get(name) for name in (FEATURES, HEAD_WEIGHT, HEAD_BIAS))
    if features is not None and (len(features) != 2 or features[0] != n_classes):
        raise _mismatch(FEATURES, f"[{n_classes}, embed], found {_show(features)}")
    if weight is not None:
        # A head scores the classes itself, or maps image features into the space of the text features.
        rows = {n_classes} if features is None else {n_classes, features[1]}
        if len(weight) != 2 or weight[0] not in rows:
            raise _mismatch(HEAD_WEIGHT, f"two dimensions, the first one of {sorted(rows)}, found {_show(weight)}")
        if bias is not None and bias != weight[:1]:
            raise _mismatch(HEAD_BIAS, f"[{weight[0]}], found {_show(bias)}")


def check_shapes(manifest: Manifest, shapes: Mapping[str, Shape]) -> None:
    """Compare the tensors' names and shapes with the manifest's stack and classes.

    Raises:
        BundleInvalidError: `manifest_mismatch`, a tensor is missing or surplus; `shape_mismatch`.
    """
    n_classes = len(manifest.classes)
    _check_tensor_set(manifest, set(shapes))
    _check_tower("image", manifest.stack.image, shapes, n_classes)
    _check_tower("text", manifest.stack.text, shapes, n_classes)
    _check_head(shapes, n_classes)
    for name, shape in shapes.items():
        if name.startswith(CONDITIONAL_PREFIX) and len(shape) > 2:
            raise _mismatch(name, f"one or two dimensions, found {_show(shape)}")


def check_values(tensors: Mapping[str, NDArray[Any]]) -> None:
    """Refuse values that would poison an answer.

    Raises:
        BundleInvalidError: `nonfinite`, a NaN or infinity; `out_of_range`, a magnitude above 1e4 or a row of
            `text.features` that is not of unit length.
    """
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise BundleInvalidError(
                "nonfinite", f"{name}: expected finite values, found NaN or infinity; do not publish this", field=name
            )
        if array.size and float(np.abs(array).max()) > MAX_ABS_VALUE:
            raise BundleInvalidError(
                "out_of_range",
                f"{name}: expected magnitudes of at most {MAX_ABS_VALUE:g}",
                field=name,
                limit=MAX_ABS_VALUE,
            )
    if FEATURES in tensors:
        norms = np.linalg.norm(tensors[FEATURES].astype(np.float64), axis=-1)
        worst = int(np.abs(norms - 1.0).argmax())
        if abs(float(norms[worst]) - 1.0) > UNIT_NORM_TOLERANCE:
            raise BundleInvalidError(
                "out_of_range",
                f"{FEATURES}[{worst}]: expected a row of length 1, found {float(norms[worst]):.4g}; normalise the rows",
                field=f"{FEATURES}[{worst}]",
                limit=UNIT_NORM_TOLERANCE,
            )


def check_classes(manifest: Manifest) -> None:
    """Check the names and texts of all classes.

    Raises:
        BundleInvalidError: `class_name` or `class_duplicate`; `field` gives the position.
    """
    for index, spec in enumerate(manifest.classes):
        check_name(spec.name, field=f"classes[{index}].name")
        check_name(spec.text, field=f"classes[{index}].text")
    check_unique(spec.name for spec in manifest.classes)
