"""Measured rows and the folder that keeps them: what is in it is never computed again.

    <folder>/rows/<cell>.json           one finished row, written last: where it stands, the cell is done
    <folder>/rows/<cell>.npz            its answers, and a sample of its image features
    <folder>/bundles/<training>/        bundle.safetensors, losses.json, and the checkpoint of a run in progress

Knows names and files. Does not know how anything is measured or learned. A name carries a digest over everything that
decides the numbers, so a changed recipe, seed, data set, backbone or boosting bundle is another cell.
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
    """One measurement: one method, one seed, one data set. Rates are in per cent.

    Attributes:
        protocol: how it was measured.
        dataset: what was trained on.
        target: what was tested on; `dataset` itself except across data sets.
        method: as `--method` names it, or `zero-shot`.
        boosted: whether on boosting prompts.
        shots: training images per class; 0 for zero-shot.
        seed: of draw and training; None for zero-shot, which has none.
        cell: name of its files below `rows`.
        training: name of its folder below `bundles`; None for zero-shot.
        n_images: test images looked at.
        accuracy: over all classes; None in base-to-new.
        base, new: each half of the classes among itself; None outside base-to-new, `new` also where it cannot be had.
        h: harmonic mean of both, None without both.
        note: why a number is missing; empty if none is.
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
    """Everything that decides a row's numbers.

    Attributes:
        protocol: as in `Row`, like the next six.
        dataset, target, method, boosted, shots, seed: what the name says to people.
        data: digests of the data sets.
        recipe: digest of the recipe, or of what else decides the text of a zero-shot row.
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
        """A file name that people can read and that differs where anything differs."""
        words = [self.protocol, self.dataset, *([self.target] if self.target != self.dataset else [])]
        return "-".join([slug(" ".join(words)), _variant(self.method, self.boosted, self.shots, self.seed), self._mark])

    def row(self, *, training: str | None, n_images: int, note: str = "") -> Row:
        """The row of this cell, without its rates."""
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
    """The answers behind a row.

    Attributes:
        class_names: all classes of the test images.
        labels_N, named_N: positions among them, int64.
        features_ME: unit image features of at most 1000 images spread evenly over the N.
        feature_labels_M: their classes.
    """

    class_names: tuple[str, ...]
    labels_N: NDArray[np.int64]
    named_N: NDArray[np.int64]
    features_ME: NDArray[np.float32]
    feature_labels_M: NDArray[np.int64]


class Results:
    """The folder.

    Args:
        folder: made when the first row is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, identity: RowKey) -> Row | None:
        """The row of a cell if it is finished.

        Raises:
            CheckpointError: its file is damaged.
        """
        path = self._row_path(identity.cell)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return Row(**kept["row"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"The finished row {path} cannot be read; delete it to measure it again."
            raise CheckpointError(msg) from error

    def keep(self, identity: RowKey, row: Row, predictions: SavedPredictions) -> Row:
        """Write a finished row; whoever is killed meanwhile finds all of it or nothing."""
        buffer = io.BytesIO()
        arrays = {field.name: np.asarray(getattr(predictions, field.name)) for field in fields(predictions)}
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomic(self._row_path(row.cell).with_suffix(".npz"), buffer.getvalue())
        record = {"row": asdict(row), "identity": asdict(identity)}
        write_atomic(self._row_path(row.cell), _json_bytes(record))
        return row

    def predictions(self, row: Row) -> SavedPredictions:
        """The answers behind a finished row.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        path = self._row_path(row.cell).with_suffix(".npz")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {field.name: arrays[field.name] for field in fields(SavedPredictions)}
        except (OSError, ValueError, KeyError) as error:
            msg = f"The answers {path} cannot be read; delete {path.with_suffix('.json').name} to measure them again."
            raise CheckpointError(msg) from error
        return SavedPredictions(**(found | {"class_names": tuple(found["class_names"].tolist())}))

    def training_folder(self, training: str) -> Path:
        """Where one training's bundle, losses and checkpoint lie."""
        return self.folder / "bundles" / training

    def keep_losses(self, training: str, losses: list[float]) -> None:
        """Write the loss of each step of a finished training."""
        write_atomic(self.training_folder(training) / "losses.json", _json_bytes(losses))

    def losses(self, row: Row) -> list[float]:
        """The loss of each step; empty for zero-shot, or where a run was killed right behind its training."""
        if row.training is None:
            return []
        path = self.training_folder(row.training) / "losses.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []

    def _row_path(self, cell: str) -> Path:
        return self.folder / "rows" / f"{cell}.json"


def sample_features(
    features_NE: NDArray[np.float32], labels_N: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """At most `MAX_SAVED_FEATURES` rows, spread evenly, with their labels."""
    rows = np.unique(np.linspace(0, len(labels_N) - 1, min(len(labels_N), MAX_SAVED_FEATURES)).round().astype(int))
    return features_NE[rows], labels_N[rows]


def training_name(dataset: str, method: str, *, boosted: bool, shots: int, seed: int, identity: dict[str, str]) -> str:
    """The folder of one training; protocols that train alike share it.

    Args:
        dataset: what is trained on.
        method: how.
        boosted: whether on boosting prompts.
        shots: images per class.
        seed: of draw and training.
        identity: digests of everything that decides the bundle.
    """
    return "-".join([slug(dataset), _variant(method, boosted, shots, seed), short_digest(identity)])


def slug(text: str) -> str:
    """Lower-case words joined by hyphens, at most 48 characters, as file and domain names take them."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:48].strip("-") or "data"


def short_digest(identity: object) -> str:
    """Twelve hexadecimal digits over plain values."""
    return digest_of(json.dumps(identity, sort_keys=True).encode()).removeprefix("sha256:")[:12]


def _variant(method: str, boosted: bool, shots: int, seed: int | None) -> str:
    words = [method, "boosted" if boosted else "plain"]
    words += [f"{shots}-shots"] if shots else []
    words += [f"seed-{seed}"] if seed is not None else []
    return "-".join(words)


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
