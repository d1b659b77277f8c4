"""Evaluate one bundle, or the plain backbone, on one split: accuracy per class and confusion matrix."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_store.bundle import Bundle
from prompt_store.class_names import comparison_key
from training.data.dataset import Dataset, Split
from training.evaluation.metrics import accuracy, class_accuracies, confusion_matrix
from training.evaluation.predict import Predictor


@dataclass(frozen=True)
class ClassResult:
    """One class: number of images, accuracy in per cent, and the most frequent wrong prediction."""

    name: str
    n_images: int
    accuracy: float | None
    mistaken_for: str | None


@dataclass(frozen=True, eq=False)
class BundleResult:
    """Result of evaluating a bundle or the plain backbone.

    Attributes:
        backbone: architecture and source of the weights.
        domain, digest: of the bundle; None for the plain backbone.
        dataset, split: the evaluated images.
        labels: `own`: the bundle's classes equal the data set's; `open`: its prompts encode the data set's classes;
            `plain`: the hand-written prompt encodes them.
        n_images, n_unreadable: evaluated images, and skipped ones.
        unreadable: paths of the skipped images.
        accuracy: over all images, in per cent.
        mean_class_accuracy: mean over classes with images, in per cent.
        classes: in the data set's order.
        confusion_KK: counts; rows are true classes, columns predicted classes.
    """

    backbone: str
    domain: str | None
    digest: str | None
    dataset: str
    split: Split
    labels: str
    n_images: int
    n_unreadable: int
    unreadable: tuple[str, ...]
    accuracy: float
    mean_class_accuracy: float
    classes: tuple[ClassResult, ...]
    confusion_KK: NDArray[np.int64]

    @property
    def title(self) -> str:
        """The model and the images."""
        return f"{self.domain or self.backbone} on {self.dataset}, {self.split}"


def measure_bundle(
    predictor: Predictor,
    bundle: Bundle | None,
    dataset: Dataset,
    split: Split = "test",
    *,
    on_progress: Callable[[int], None] = lambda _: None,
) -> BundleResult:
    """Evaluate a bundle, or without one the plain backbone with the data set's hand-written prompt.

    If a bundle's classes equal the data set's, in any order, it is used as in the service. Otherwise its prompts encode
    the data set's classes.

    Args:
        predictor: wraps the backbone.
        bundle: a validated bundle, or None.
        dataset: labelled images.
        split: the split to evaluate.
        on_progress: called with the number of images just predicted.

    Raises:
        StackMismatchError: the bundle is for another backbone, or supports its own classes only.
        DatasetError: the split has no readable images.
    """
    model, keys = predictor.model, [comparison_key(name) for name in dataset.class_names]
    own: dict[str, int] = {}
    if bundle is None:
        stack, labels = model.plain_stack("plain", dataset.class_names, [dataset.template]), "plain"
    else:
        stack, labels = model.load_stack(bundle), "open"
        own = {comparison_key(name): position for position, name in enumerate(stack.class_names)}
        if set(keys) == set(own):
            labels = "own"
        else:
            stack = model.with_labels(stack, dataset.class_names)
    predictions = predictor.predict(stack, dataset, split, on_progress=on_progress)
    # Predictions are indices into the stack's classes; labels are indices into the data set's.
    label_of = {own[key]: label for label, key in enumerate(keys)} if labels == "own" else {}
    named_N = np.array([label_of.get(named, named) for named in predictions.named_N.tolist()], dtype=np.int64)
    confusion_KK = confusion_matrix(predictions.labels_N, named_N, len(keys))
    rates = class_accuracies(confusion_KK)
    return BundleResult(
        backbone=f"{model.backbone.arch} ({model.backbone.pretrained})",
        domain=bundle.manifest.domain if bundle is not None else None,
        digest=bundle.digest if bundle is not None else None,
        dataset=dataset.name,
        split=split,
        labels=labels,
        n_images=len(named_N),
        n_unreadable=len(predictions.unreadable),
        unreadable=tuple(map(str, predictions.unreadable)),
        accuracy=accuracy(predictions.labels_N, named_N),
        mean_class_accuracy=float(np.mean([rate for rate in rates if rate is not None])),
        classes=tuple(
            ClassResult(name, int(row_K.sum()), rate, _mistaken(row_K, label, dataset.class_names))
            for label, (name, row_K, rate) in enumerate(zip(dataset.class_names, confusion_KK, rates, strict=True))
        ),
        confusion_KK=confusion_KK,
    )


def to_json(result: BundleResult) -> dict[str, Any]:
    """The result as JSON values."""
    return asdict(result) | {"confusion_KK": result.confusion_KK.tolist()}


def to_markdown(result: BundleResult, pictures: Sequence[str] = ()) -> str:
    """The result as Markdown, worst classes first.

    Args:
        result: from `measure_bundle`.
        pictures: file names in the same folder.
    """
    models = {
        "own": f"Bundle `{result.digest}`, classifying among its own classes.",
        "open": f"Bundle `{result.digest}`, classifying among the data set's classes, which differ from its own.",
        "plain": f"{result.backbone} without prompts, classifying with the data set's hand-written prompt.",
    }
    lines = [
        f"# {result.title}",
        "",
        models[result.labels],
        f"{result.n_images} images, {result.n_unreadable} unreadable skipped. "
        f"Accuracy {result.accuracy:.2f} %, mean over classes {result.mean_class_accuracy:.2f} %.",
        "",
        "| class | images | accuracy | most frequent wrong prediction |",
        "|---|---|---|---|",
    ]
    for each in sorted(result.classes, key=lambda found: (found.accuracy is None, found.accuracy or 0.0)):
        rate = "-" if each.accuracy is None else f"{each.accuracy:.2f}"
        cells = [each.name, str(each.n_images), rate, each.mistaken_for or "-"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for picture in pictures:
        lines += ["", f"![{picture.removesuffix('.png')}]({picture})"]
    return "\n".join(lines) + "\n"


def _mistaken(row_K: NDArray[np.int64], label: int, names: tuple[str, ...]) -> str | None:
    others = row_K.copy()
    others[label] = 0
    return names[int(others.argmax())] if others.any() else None
