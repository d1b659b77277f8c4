"""Bundles with a few-shot head: which bundles can get one, added classes, and the tensors and calibration of a fit.

Legend: N names, K classes, E joint width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from prompt_store.bundle import Bundle, write_bundle
from prompt_store.class_names import comparison_key
from prompt_store.contents import CONTEXT, FEATURES, head_kind
from prompt_store.manifest import Calibration, ClassSpec
from prompted_clip.errors import StackMismatchError
from prompted_clip.features import Ints, LinearTerm
from prompted_clip.fit_report import FitReport
from prompted_clip.provenance import new_provenance


def check_replaceable(bundle: Bundle) -> None:
    """Check that a bundle's logits are those of its text features, or those of an earlier fit.

    Raises:
        StackMismatchError: they are not.
    """
    stack = bundle.manifest.stack
    kind = head_kind(stack, bundle.tensors)
    if kind == "plain" or (kind == "class" and stack.head_input == "unit"):
        return
    made = bundle.manifest.provenance.method
    msg = (
        f"The bundle for domain {bundle.manifest.domain!r}, made by {made}, has a {kind} head, which a few-shot head "
        "cannot extend. Use a bundle with text features only, such as one from `caspl boost`."
    )
    raise StackMismatchError(msg)


def check_restrictable(bundle: Bundle) -> None:
    """Check that a bundle's prompts do not depend on its classes, so that some of them can be left out.

    Raises:
        StackMismatchError: they do.
    """
    context = bundle.tensors.get(CONTEXT)
    if context is not None and context.ndim == 4:
        msg = f"The bundle for domain {bundle.manifest.domain!r} has class-specific prompts: keep all of its classes."
        raise StackMismatchError(msg)


@dataclass(frozen=True, eq=False)
class FitClasses:
    """The classes of a fit.

    Attributes:
        specs: names and texts.
        text_KE: their unit text features, in the bundle's dtype.
    """

    specs: tuple[ClassSpec, ...]
    text_KE: NDArray[Any]

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Self:
        """The bundle's own classes."""
        return cls(tuple(bundle.manifest.classes), bundle.tensors[FEATURES])

    @property
    def names(self) -> list[str]:
        """Labels in class order."""
        return [spec.name for spec in self.specs]

    def missing(self, names: Iterable[str]) -> list[str]:
        """The names that are not among the classes."""
        known = {comparison_key(name) for name in self.names}
        return [name for name in names if comparison_key(name) not in known]

    def extended(self, names: Sequence[str], text_NE: NDArray[Any]) -> "FitClasses":
        """The classes, followed by new ones with these text features."""
        added = tuple(ClassSpec(name=name, text=name) for name in names)
        return FitClasses(self.specs + added, np.concatenate([self.text_KE, text_NE.astype(self.text_KE.dtype)]))

    def restricted(self, names: Iterable[str]) -> "FitClasses":
        """The classes with these names, in class order."""
        kept = {comparison_key(name) for name in names}
        rows = [row for row, name in enumerate(self.names) if comparison_key(name) in kept]
        return FitClasses(tuple(self.specs[row] for row in rows), self.text_KE[rows])

    def indices(self, names: Sequence[str]) -> Ints:
        """The class index of each name; KeyError if it is not among the classes."""
        place = {comparison_key(name): index for index, name in enumerate(self.names)}
        place_of = {name: place[comparison_key(name)] for name in set(names)}
        return np.array([place_of[name] for name in names], dtype=np.int64)


def write_fit(
    bundle: Bundle,
    classes: FitClasses,
    term: LinearTerm,
    report: FitReport,
    *,
    method: str,
    data_digests: Mapping[str, str],
) -> bytes:
    """A bundle with a fit's head and calibration instead of those of the given bundle.

    (z + alpha (W f + b)) / T as the format has it: with a head share of 1/2, weight alpha W and bias alpha b, the
    logits are half of the sum, and T/2 is the temperature.

    Args:
        bundle: its prompts and, unless `classes` has others, its text features are kept.
        classes: those of the fit.
        term: of the fit, see `FewShotFit`.
        report: of the fit; the provenance records its main numbers.
        method: the requested one, such as `auto`.
        data_digests: of the examples, by name; the digest of `bundle` is added.
    """
    tensors = {name: array for name, array in bundle.tensors.items() if not name.startswith("head.")}
    tensors[FEATURES] = classes.text_KE
    stack: dict[str, Any] = {"head_share": None, "head_input": "embedding"}
    temperature = report.temperature
    if report.alpha:
        tensors["head.weight"] = (report.alpha * term.weight_KE).astype(np.float32)
        tensors["head.bias"] = (report.alpha * term.bias_K).astype(np.float32)
        stack, temperature = {"head_share": 0.5, "head_input": "unit"}, temperature / 2
    changes = {
        "classes": list(classes.specs),
        "stack": bundle.manifest.stack.model_copy(update=stack),
        "calibration": Calibration(temperature=temperature, abstain=report.abstain),
        "provenance": new_provenance(
            method=report.method,
            phase="adapt",
            recipe={"method": method, "alpha": report.alpha},
            data_digests={**data_digests, "bundle": bundle.digest},
            metrics={
                "n_images": report.n_examples,
                "n_images_by_class": {one.name: one.n_examples for one in report.classes if one.n_examples},
                "n_unlabelled_images": report.n_unlabelled,
                "leave_one_out_accuracy": report.accuracy.rate,
                "text_accuracy": report.text_accuracy,
                "calibration_error": report.calibration_error_after,
            },
        ),
    }
    return write_bundle(bundle.manifest.model_copy(update=changes), tensors)
