"""The papers' evaluation protocols.

    base-to-new             train on base classes; test base and new classes separately
    few-shot                train and test on all classes
    cross-dataset           train on one data set; test on others, with their own class names
    domain-generalisation   train on one data set; test on variants with the same classes or a subset

Sources: CoCoOp (arXiv 2203.05557), section 4; few-shot: CoOp (arXiv 2109.01134), section 4.1.
Finished rows and bundles in the results folder are reused.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prompt_store.class_names import comparison_key
from prompted_clip.errors import StackMismatchError
from training.data.dataset import Dataset, shorten
from training.data.few_shot import base_and_new
from training.errors import DatasetError
from training.evaluation.bench import Bench, Trial, recipe_digest
from training.evaluation.metrics import accuracy, harmonic_mean
from training.evaluation.predict import Predictions
from training.evaluation.rows import Protocol, Row, RowKey, SavedPredictions, sample_features
from training.files import digest_of


def base_to_new(bench: Bench, dataset: Dataset, trial: Trial) -> Row:
    """Train on the base classes, and test base and new classes separately.

    Shots are sampled over all classes before the split, see `training.data.few_shot`. A label-free method learns from
    all train images and all class names instead, as boosting does, and each half is classified among its own classes.

    Args:
        bench: runs the trial.
        dataset: with test images, and with train images unless the trial is zero-shot.
        trial: the method, or the zero-shot base model.

    Returns:
        A row with `base`. For prompts that support only their own classes, `new` and `h` are None; see `note`.

    Raises:
        DatasetError: fewer than two classes, or no train or test images.
        TrainingError: as `run_adapt`.
    """
    key = _row_key(bench, "base-to-new", dataset, dataset, trial)
    if (finished := bench.results.load(key)) is not None:
        return finished
    sample = bench.sample(trial, dataset)
    base, new = base_and_new(sample)
    trained = trial.with_further_classes(new.class_names)
    stack, training = bench.prepare(trained, sample if trial.is_label_free else base, dataset.name)
    of_base = bench.rename(trial, stack, base)
    predictions = [bench.predict(of_base, base, f"{trial.method}{bench.suffix} on {base.name}")]
    note = ""
    try:
        renamed = bench.rename(trial, stack, new)
    except StackMismatchError as error:
        note = str(error)
    else:
        predictions.append(bench.predict(renamed, new, f"{trial.method}{bench.suffix} on {new.name}"))
    rates = [accuracy(half.labels_N, half.named_N) for half in predictions]
    row = key.row(training=training, n_images=sum(len(half.labels_N) for half in predictions), note=note)
    row = replace(row, base=rates[0])
    if len(rates) == 2:
        row = replace(row, new=rates[1], h=harmonic_mean(*rates))
    return bench.results.save(key, row, _saved_predictions(dataset, predictions, [0, len(base.class_names)]))


def all_classes(bench: Bench, dataset: Dataset, trial: Trial) -> Row:
    """The few-shot protocol: train and test on all classes.

    Raises:
        DatasetError, TrainingError: as `base_to_new`.
    """
    return _transfer(bench, "few-shot", dataset, dataset, trial)


def across(bench: Bench, source: Dataset, target: Dataset, trial: Trial) -> Row:
    """The cross-dataset protocol: train on one data set, test on another or the same one.

    Returns:
        A row with `accuracy`, or None and a `note` for prompts that support their own classes only.

    Raises:
        DatasetError, TrainingError: as `base_to_new`.
    """
    return _transfer(bench, "cross-dataset", source, target, trial)


def to_variant(bench: Bench, source: Dataset, target: Dataset, trial: Trial) -> Row:
    """Domain generalisation: train on one data set, test on a variant with the same classes or a subset.

    Raises:
        DatasetError: as `check_variant`, and as `base_to_new`.
        TrainingError: as `base_to_new`.
    """
    check_variant(source, target)
    return _transfer(bench, "domain-generalisation", source, target, trial)


def check_variant(source: Dataset, target: Dataset) -> None:
    """Check that the target's classes are a subset of the source's.

    Raises:
        DatasetError: the target has other classes.
    """
    known = {comparison_key(name) for name in source.class_names}
    strange = [repr(name) for name in target.class_names if comparison_key(name) not in known]
    if strange:
        msg = (
            f"{target.name} has classes that {source.name} lacks: {shorten(strange)}. "
            "Use the cross-dataset protocol for different classes."
        )
        raise DatasetError(msg)


def _transfer(bench: Bench, protocol: Protocol, source: Dataset, target: Dataset, trial: Trial) -> Row:
    key = _row_key(bench, protocol, source, target, trial)
    if (finished := bench.results.load(key)) is not None:
        return finished
    stack, training = bench.prepare(trial, bench.sample(trial, source), source.name)
    try:
        renamed = bench.rename(trial, stack, target)
    except StackMismatchError as error:
        row = key.row(training=training, n_images=0, note=str(error))
        return bench.results.save(key, row, _saved_predictions(target, [], []))
    predictions = bench.predict(renamed, target, f"{trial.method}{bench.suffix} on {target.name}")
    row = key.row(training=training, n_images=len(predictions.labels_N))
    rate = accuracy(predictions.labels_N, predictions.named_N)
    return bench.results.save(key, replace(row, accuracy=rate), _saved_predictions(target, [predictions], [0]))


def _row_key(bench: Bench, protocol: Protocol, source: Dataset, target: Dataset, trial: Trial) -> RowKey:
    return RowKey(
        protocol=protocol,
        dataset=source.name,
        target=target.name,
        method=trial.method,
        boosted=bench.is_boosted,
        shots=trial.shots,
        seed=trial.seed,
        data=(source.digest, target.digest),
        recipe=recipe_digest(trial.recipe) if trial.recipe is not None else digest_of(target.template.encode()),
        backbone=bench.base_model.backbone.fingerprint,
        boost=bench.base_model.boost_digest,
    )


def _saved_predictions(dataset: Dataset, parts: Sequence[Predictions], offsets: Sequence[int]) -> SavedPredictions:
    """Combine the predictions of one or two halves of the classes, as indices into all classes."""
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        return SavedPredictions(dataset.class_names, nothing, nothing, np.zeros((0, 0), dtype=np.float32), nothing)
    pairs = list(zip(parts, offsets[: len(parts)], strict=True))
    labels = np.concatenate([part.labels_N + offset for part, offset in pairs])
    named = np.concatenate([part.named_N + offset for part, offset in pairs])
    features = np.concatenate([part.features_NE for part in parts])
    return SavedPredictions(dataset.class_names, labels, named, *sample_features(features, labels))
