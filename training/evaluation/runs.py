"""`caspl evaluate` as functions: from names and paths to a report on disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone
from training.data.catalog import open_dataset
from training.data.dataset import Dataset, Split, shorten
from training.errors import BoostBundleError
from training.evaluation.bench import Bench, ShotSampler
from training.evaluation.one_bundle import measure_bundle
from training.evaluation.output import write_bundle_report, write_report
from training.evaluation.plan import Plan, run_plan
from training.evaluation.predict import Predictor
from training.evaluation.rows import Protocol, Results
from training.files import read_bundle_file
from training.progress import progress_bars
from training.terminal import print_notes


@dataclass(frozen=True)
class EvaluateJob:
    """Arguments of `run_evaluate`.

    Attributes:
        protocol: evaluation protocol.
        data: names or paths of data sets.
        root: folder with the published data sets.
        methods: keys of `ALL_RECIPES`.
        boost: boosting bundles: none, one for all training data sets, or one for each.
        has_plain: also evaluate without boosting.
        seeds, shots, overrides: as in `Plan`.
        out: folder for the report and finished results.
        checkpoint_every: steps between checkpoints.
    """

    protocol: Protocol
    data: tuple[str, ...]
    root: Path | None
    methods: tuple[str, ...]
    boost: tuple[Path, ...]
    has_plain: bool
    seeds: tuple[int, ...]
    shots: tuple[int, ...]
    overrides: tuple[str, ...]
    out: Path
    checkpoint_every: int = 100


def run_evaluate(job: EvaluateJob, load: Callable[[], Backbone], console: Console) -> dict[str, Any]:
    """Run the evaluation and write the report.

    Args:
        job: the arguments.
        load: loads the backbone; called after the arguments are validated.
        console: shows progress.

    Returns:
        The report as a JSON object.

    Raises:
        TrainingError: see its subclasses; finished rows are kept and reused.
        BundleInvalidError: an invalid boosting bundle.
    """
    datasets = tuple(open_dataset(name, job.root) for name in job.data)
    for dataset in datasets:
        print_notes(dataset.notes, console)
    plan = Plan(job.protocol, datasets, job.methods, job.seeds, job.shots, job.overrides)
    bundles = [read_bundle_file(path) for path in _boost_of_each(plan.sources, job.boost)]
    results, predictor, sampler = Results(job.out), Predictor(load()), ShotSampler(console)

    def bench(boost: Bundle | None) -> Bench:
        return Bench(predictor, results, console, boost, checkpoint_every=job.checkpoint_every, sampler=sampler)

    plain = [bench(None)] if job.has_plain else []
    boosted = [bench(bundle) for bundle in bundles]
    benches = [[*plain, each] for each in boosted] if boosted else [plain for _ in plan.sources]
    return write_report(run_plan(plan, benches), results, job.out, console)


def run_bundle(
    bundle: Path | None,
    data: str,
    root: Path | None,
    split: Split,
    template: str | None,
    load: Callable[[], Backbone],
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """Evaluate one bundle, or the plain backbone, on one split and write the report.

    Args:
        bundle: bundle file, or None for the plain backbone.
        data: name or path of a data set.
        root: folder with the published data sets.
        split: the split to evaluate.
        template: hand-written prompt of the plain backbone, with one `{}`; None for the data set's.
        load: loads the backbone; called after the other arguments are validated.
        out: folder for the report.
        console: shows progress.

    Returns:
        The result as a JSON object.

    Raises:
        DatasetError: the data set is invalid, or the split has no readable images.
        BundleInvalidError: an invalid bundle.
        StackMismatchError: the bundle is for another backbone, or does not support these classes.
    """
    dataset = open_dataset(data, root, single_split=split, template=template)
    print_notes(dataset.notes, console)
    n_images, read = len(dataset.split(split)), read_bundle_file(bundle) if bundle is not None else None
    predictor = Predictor(load())
    with progress_bars(console) as progress:
        model = read.manifest.domain if read is not None else predictor.model.backbone.arch
        task = progress.add_task(f"{model} on {dataset.name}", total=n_images, note="")
        result = measure_bundle(predictor, read, dataset, split, on_progress=lambda n: progress.advance(task, n))
    if result.unreadable:
        print_notes([f"skipped unreadable images ({result.n_unreadable}): {shorten(result.unreadable)}"], console)
    return write_bundle_report(result, out, console)


def _boost_of_each(sources: Sequence[Dataset], boost: Sequence[Path]) -> list[Path]:
    """The boosting bundle of each training data set, or none."""
    if len(boost) == 1:
        return [boost[0]] * len(sources)
    if len(boost) in {0, len(sources)}:
        return list(boost)
    named = shorten(source.name for source in sources)
    msg = f"Pass one boosting bundle, or one for each of {named}; got {len(boost)}."
    raise BoostBundleError(msg)
