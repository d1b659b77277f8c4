"""Result rows and the results folder; finished results are never computed again.

    <folder>/rows/<cell>.json           a finished row, written last
    <folder>/rows/<cell>.npz            its predictions, and a sample of its image features
    <folder>/bundles/<training>/        bundle.safetensors, losses.json, and the checkpoint of a run in progress

Names contain a digest over all inputs: another recipe, seed, data set, backbone or boosting bundle gets its own cell.
"""

import io
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from training.errors import CheckpointError
from training.files import digest_of, write_atomic

Protocol = Literal["base-to-new", "few-shot", "cross-dataset", "domain-generalisation"]
ZERO_SHOT: Final = "zero-shot"
MAX_SAVED_FEATURES: Final = 1000


@dataclass(frozen=True)
class Row:
    """One result: one method, one seed, one data set. Rates are in per cent.

    Attributes:
        protocol: evaluation protocol.
        dataset: training data set.
        target: test data set; equals `dataset` except across data sets.
        method: as in `--method`, or `zero-shot`.
        boosted: with boosting prompts.
        shots: training images per class; 0 for zero-shot.
        seed: seed of sampling and training; None for zero-shot.
        cell: name of its files in `rows`.
        training: name of its folder in `bundles`; None for zero-shot.
        n_images: number of test images.
        accuracy: over all classes; None in base-to-new.
        base, new: accuracy within each half of the classes; None outside base-to-new, `new` also if unsupported.
        h: harmonic mean of both, None without both.
        note: the reason for a missing number, or empty.
    """

    protocol: Protocol
    dataset: str
    target: str
    method: str
    boosted: bool
    shots: int
    seed: int | None
    cell: str
    training: str | None
    n_images: int
    accuracy: float | None = None
    base: float | None = None
    new: float | None = None
    h: float | None = None
    note: str = ""


@dataclass(frozen=True)
class RowKey:
    """All inputs that determine a row.

    Attributes:
        protocol, dataset, target, method, boosted, shots, seed: as in `Row`.
        data: digests of the data sets.
        recipe: digest of the recipe; for zero-shot, of the text inputs.
        backbone: fingerprint.
        boost: digest of the boosting bundle, or None.
    """

    protocol: Protocol
    dataset: str
    target: str
    method: str
    boosted: bool
    shots: int
    seed: int | None
    data: tuple[str, ...]
    recipe: str
    backbone: str
    boost: str | None

    @property
    def cell(self) -> str:
        """A readable file name with a digest over all inputs."""
        words = [self.protocol, self.dataset, *([self.target] if self.target != self.dataset else [])]
        return "-".join([slug(" ".join(words)), _variant(self.method, self.boosted, self.shots, self.seed), self._mark])

    def row(self, *, training: str | None, n_images: int, note: str = "") -> Row:
        """The row for this key, without rates."""
        return Row(
            protocol=self.protocol,
            dataset=self.dataset,
            target=self.target,
            method=self.method,
            boosted=self.boosted,
            shots=self.shots,
            seed=self.seed,
            cell=self.cell,
            training=training,
            n_images=n_images,
            note=note,
        )

    @property
    def _mark(self) -> str:
        return short_digest(asdict(self))


@dataclass(frozen=True, eq=False)
class SavedPredictions:
    """The predictions of a row.

    Attributes:
        class_names: all classes of the test images.
        labels_N, named_N: true and predicted classes, int64.
        features_ME: unit image features of at most 1000 evenly sampled images.
        feature_labels_M: their classes.
    """

    class_names: tuple[str, ...]
    labels_N: NDArray[np.int64]
    named_N: NDArray[np.int64]
    features_ME: NDArray[np.float32]
    feature_labels_M: NDArray[np.int64]


class Results:
    """The results folder.

    Args:
        folder: created when the first row is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: RowKey) -> Row | None:
        """Load a finished row, or None.

        Raises:
            CheckpointError: its file is damaged.
        """
        path = self._row_path(key.cell)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return Row(**record["row"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"Cannot read the result {path}. Delete it to run it again."
            raise CheckpointError(msg) from error

    def save(self, key: RowKey, row: Row, predictions: SavedPredictions) -> Row:
        """Save a finished row atomically."""
        buffer = io.BytesIO()
        arrays = {field.name: np.asarray(getattr(predictions, field.name)) for field in fields(predictions)}
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomic(self._row_path(row.cell).with_suffix(".npz"), buffer.getvalue())
        record = {"row": asdict(row), "identity": asdict(key)}
        write_atomic(self._row_path(row.cell), _json_bytes(record))
        return row

    def predictions(self, row: Row) -> SavedPredictions:
        """Load the predictions of a finished row.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        path = self._row_path(row.cell).with_suffix(".npz")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {field.name: arrays[field.name] for field in fields(SavedPredictions)}
        except (OSError, ValueError, KeyError) as error:
            msg = f"Cannot read the predictions {path}. Delete {path.with_suffix('.json').name} to run them again."
            raise CheckpointError(msg) from error
        return SavedPredictions(**(found | {"class_names": tuple(found["class_names"].tolist())}))

    def training_folder(self, training: str) -> Path:
        """Folder of a training's bundle, losses and checkpoint."""
        return self.folder / "bundles" / training

    def save_losses(self, training: str, losses: list[float]) -> None:
        """Save the loss of each step of a finished training."""
        write_atomic(self.training_folder(training) / "losses.json", _json_bytes(losses))

    def losses(self, row: Row) -> list[float]:
        """The loss of each step; empty for zero-shot, or if the run was killed before saving them."""
        if row.training is None:
            return []
        path = self.training_folder(row.training) / "losses.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []

    def _row_path(self, cell: str) -> Path:
        return self.folder / "rows" / f"{cell}.json"


def sample_features(
    features_NE: NDArray[np.float32], labels_N: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """At most `MAX_SAVED_FEATURES` evenly sampled rows with their labels."""
    rows = np.unique(np.linspace(0, len(labels_N) - 1, min(len(labels_N), MAX_SAVED_FEATURES)).round().astype(int))
    return features_NE[rows], labels_N[rows]


def training_name(
    dataset: str, method: str, *, boosted: bool, shots: int, seed: int | None, identity: dict[str, str]
) -> str:
    """Folder name of a training; shared by protocols with identical training.

    Args:
        dataset: training data set.
        method: adapting method.
        boosted: with boosting prompts.
        shots: images per class.
        seed: seed of sampling and training; None if nothing is random.
        identity: digests of all inputs of the training.
    """
    return "-".join([slug(dataset), _variant(method, boosted, shots, seed), short_digest(identity)])


def slug(text: str) -> str:
    """Lower-case words joined by hyphens, at most 48 characters, for file and domain names."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:48].strip("-") or "data"


def short_digest(identity: object) -> str:
    """Digest of JSON values, 12 hex digits."""
    return digest_of(json.dumps(identity, sort_keys=True).encode()).removeprefix("sha256:")[:12]


def _variant(method: str, boosted: bool, shots: int, seed: int | None) -> str:
    words = [method, "boosted" if boosted else "plain"]
    words += [f"{shots}-shots"] if shots else []
    words += [f"seed-{seed}"] if seed is not None else []
    return "-".join(words)


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
