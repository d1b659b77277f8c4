"""Validation of a bundle's tensors against its manifest: names, shapes and values.

Legend: D depth, P tokens, W tower width, K classes, E joint dimension, F width of the text features, H hidden width.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from prompt_store.class_names import check_name, check_unique
from prompt_store.errors import BundleInvalidError
from prompt_store.manifest import GroupsSpec, Manifest, StackSpec

MAX_ABS_VALUE: Final = 1e4  # far above any prompt value, below the float16 maximum
UNIT_NORM_TOLERANCE: Final = 1e-2
FEATURES: Final = "text.features"
CONTEXT: Final = "text.adapt"

Shape = tuple[int, ...]
HeadKind = Literal["plain", "class", "projector", "conditional"]
"""Text features only, plus a linear class head, behind an image projector, or text features computed per image."""

HEAD_SHAPES: Final[Mapping[HeadKind, Mapping[str, str]]] = {
    "plain": {FEATURES: "KE"},
    "class": {FEATURES: "KE", "head.weight": "KE", "head.bias": "K"},
    "projector": {
        FEATURES: "KF",
        "head.hidden.weight": "HE",
        "head.hidden.bias": "H",
        "head.weight": "FH",
        "head.bias": "F",
    },
    "conditional": {
        "conditional.linear1.weight": "HE",
        "conditional.linear1.bias": "H",
        "conditional.linear2.weight": "WH",
        "conditional.linear2.bias": "W",
    },
}
"""The tensors of each kind besides the prompt groups: one letter per dimension, equal letters are equal sizes."""


def head_kind(stack: StackSpec, names: Collection[str]) -> HeadKind:
    """The kind of head, from the manifest and the tensor names."""
    if stack.head == "conditional":
        return "conditional"
    if any(name.startswith("head.hidden.") for name in names):
        return "projector"
    has_class_head = stack.head_share is not None or any(name.startswith("head.") for name in names)
    return "class" if has_class_head else "plain"


def _mismatch(field: str, problem: str) -> BundleInvalidError:
    return BundleInvalidError("shape_mismatch", f"{field} {problem}.", field=field)


def _group_names(tower: str, groups: GroupsSpec) -> list[str]:
    present = {"boost": groups.boost is not None, "adapt": groups.adapt is not None}
    return [f"{tower}.{group}" for group, is_present in present.items() if is_present]


def _check_tensor_set(stack: StackSpec, kind: HeadKind, names: set[str]) -> None:
    required = {*_group_names("image", stack.image), *_group_names("text", stack.text), *HEAD_SHAPES[kind]}
    missing, surplus = sorted(required - names), sorted(names - required)
    if missing or surplus:
        raise BundleInvalidError(
            "manifest_mismatch",
            "The tensors do not match the manifest's stack. "
            f"Missing: {', '.join(missing) or 'none'}. Unexpected: {', '.join(surplus) or 'none'}.",
            field=(missing or surplus)[0],
        )


def _check_stack(manifest: Manifest, kind: HeadKind) -> None:
    """Reject a manifest whose fields contradict each other."""
    stack = manifest.stack
    if kind == "class":
        _require(stack.head_share is not None, "stack.head_share", "must be set for a linear class head")
    else:
        _require(stack.head_share is None, "stack.head_share", f"must be null for a {kind} head")
        _require(stack.head_input == "embedding", "stack.head_input", f"must be embedding for a {kind} head")
    if kind == "projector":
        _require(stack.labels == "own", "stack.labels", "must be own for a projector head")
    if kind == "conditional":
        context = stack.text.adapt
        is_context = context is not None and context.depth == 1
        _require(is_context, "stack.text.adapt", "must have depth 1 for a conditional head")
        _require(len(manifest.templates) == 1, "templates", "must have exactly one entry for a conditional head")


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise BundleInvalidError("manifest_mismatch", f"{field} {message}.", field=field)


def _check_tower(tower: str, groups: GroupsSpec, shapes: Mapping[str, Shape], n_contexts: int | None) -> None:
    """Check one tower's groups; `n_contexts` is the number of class-specific contexts, None if not allowed."""
    widths: dict[str, int] = {}
    for group, spec in (("boost", groups.boost), ("adapt", groups.adapt)):
        if spec is None:
            continue
        name = f"{tower}.{group}"
        shape = shapes[name]
        plain = (spec.depth, spec.tokens)
        is_plain = len(shape) == 3 and shape[:2] == plain
        is_per_class = name == CONTEXT and len(shape) == 4 and shape[:3] == (n_contexts, *plain)
        if not (is_plain or is_per_class):
            raise _mismatch(
                name, f"has shape {list(shape)}, but the manifest requires [{spec.depth}, {spec.tokens}, width]"
            )
        widths[name] = shape[-1]
    if len(set(widths.values())) > 1:
        raise _mismatch(f"{tower}.adapt", f"must have the width of {tower}.boost")


def _check_head(kind: HeadKind, shapes: Mapping[str, Shape], n_classes: int) -> None:
    sizes = {"K": n_classes}
    if kind == "conditional":
        sizes["W"] = shapes[CONTEXT][-1]
    for name, letters in HEAD_SHAPES[kind].items():
        shape, expected = shapes[name], [sizes.get(letter, letter) for letter in letters]
        matches = len(shape) == len(letters) and all(
            sizes.setdefault(letter, size) == size for letter, size in zip(letters, shape, strict=True)
        )
        if not matches:
            raise _mismatch(name, f"has shape {list(shape)}, expected [{', '.join(map(str, expected))}]")


def check_shapes(manifest: Manifest, shapes: Mapping[str, Shape]) -> None:
    """Check tensor names and shapes against the manifest's stack and classes.

    Raises:
        BundleInvalidError: `manifest_mismatch`, a tensor is missing or unexpected, or fields contradict each other;
            `shape_mismatch`.
    """
    n_classes, stack = len(manifest.classes), manifest.stack
    kind = head_kind(stack, shapes)
    _check_tensor_set(stack, kind, set(shapes))
    _check_stack(manifest, kind)
    _check_tower("image", stack.image, shapes, None)
    _check_tower("text", stack.text, shapes, None if kind == "conditional" else n_classes)
    _check_head(kind, shapes, n_classes)


def check_values(tensors: Mapping[str, NDArray[Any]]) -> None:
    """Check tensor values.

    Raises:
        BundleInvalidError: `nonfinite`, NaN or infinity; `out_of_range`, a magnitude above 1e4 or a row of
            `text.features` without unit norm.
    """
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise BundleInvalidError("nonfinite", f"{name} contains NaN or infinity.", field=name)
        if array.size and float(np.abs(array).max()) > MAX_ABS_VALUE:
            raise BundleInvalidError(
                "out_of_range",
                f"{name} contains values beyond ±{MAX_ABS_VALUE:g}.",
                field=name,
                limit=MAX_ABS_VALUE,
            )
    if FEATURES in tensors:
        norms = np.linalg.norm(tensors[FEATURES].astype(np.float64), axis=-1)
        worst = int(np.abs(norms - 1.0).argmax())
        if abs(float(norms[worst]) - 1.0) > UNIT_NORM_TOLERANCE:
            raise BundleInvalidError(
                "out_of_range",
                f"{FEATURES}[{worst}] has norm {float(norms[worst]):.4g}; normalize the rows to 1.",
                field=f"{FEATURES}[{worst}]",
                limit=UNIT_NORM_TOLERANCE,
            )


def check_classes(manifest: Manifest) -> None:
    """Validate the names and texts of all classes.

    Raises:
        BundleInvalidError: `class_name` or `class_duplicate`; `field` gives the position.
    """
    for index, spec in enumerate(manifest.classes):
        check_name(spec.name, field=f"classes[{index}].name")
        check_name(spec.text, field=f"classes[{index}].text")
    check_unique(spec.name for spec in manifest.classes)
