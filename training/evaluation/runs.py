"""The commands as functions: from names and paths to a report on disk.

Knows how data sets, bundles and benches come together. Does not know option names or terminals' look.
"""

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
from training.evaluation.paper_recipes import boost_recipe
from training.evaluation.plan import Plan, run_plan
from training.evaluation.predict import Predictor
from training.evaluation.reproduce import reproduce
from training.evaluation.rows import Protocol, Results
from training.files import read_bundle_file
from training.progress import progress_bars


@dataclass(frozen=True)
class EvaluateJob:
    """A protocol over data sets.

    Attributes:
        protocol: how to measure.
        data: names or paths of data sets.
        root: folder of the data sets, for names.
        methods: keys of `METHODS`.
        boost: boosting bundles: none, one for every data set that is learned on, or one for each.
        has_plain: whether to measure without boosting.
        seeds, shots, overrides: as in `Plan`.
        out: folder of the report and of finished work.
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


@dataclass(frozen=True)
class ReproduceJob:
    """A data set from its folder to the paper's base-to-new row.

    Attributes:
        data: its name or path.
        root: folder of the data sets, for a name.
        methods: keys of `METHODS`.
        seeds, overrides: as in `Plan`.
        shots: training images per class.
        boost_overrides: recipe values of phase 1 as `key=value`.
        out: folder of the report and of finished work.
        checkpoint_every: steps between checkpoints.
    """

    data: str
    root: Path | None
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    shots: int
    overrides: tuple[str, ...]
    boost_overrides: tuple[str, ...]
    out: Path
    checkpoint_every: int = 100


def run_evaluate(job: EvaluateJob, load: Callable[[], Backbone], console: Console) -> dict[str, Any]:
    """Measure and write the report.

    Args:
        job: what to measure.
        load: loads the backbone; called once the job's inputs are known to be sound.
        console: where progress is shown.

    Returns:
        The report as a JSON object.

    Raises:
        TrainingError: see its subclasses; finished rows are kept and found again.
        BundleInvalidError: a boosting bundle is no valid bundle.
    """
    datasets = tuple(open_dataset(name, job.root) for name in job.data)
    plan = Plan(job.protocol, datasets, job.methods, job.seeds, job.shots, job.overrides)
    bundles = [read_bundle_file(path) for path in _boost_of_each(plan.sources, job.boost)]
    results, predictor, sampler = Results(job.out), Predictor(load()), ShotSampler(console)

    def bench(boost: Bundle | None) -> Bench:
        return Bench(predictor, results, console, boost, checkpoint_every=job.checkpoint_every, sampler=sampler)

    plain = [bench(None)] if job.has_plain else []
    boosted = [bench(bundle) for bundle in bundles]
    benches = [[*plain, each] for each in boosted] if boosted else [plain for _ in plan.sources]
    return write_report(run_plan(plan, benches), results, job.out, console)


def run_reproduce(
    job: ReproduceJob, load_backbones: Callable[[], tuple[Backbone, Backbone]], console: Console
) -> dict[str, Any]:
    """Boost, adapt, measure and write the report.

    Args:
        job: what to reproduce.
        load_backbones: loads student and teacher; called once the job's inputs are known to be sound.
        console: where progress is shown.

    Returns:
        The report as a JSON object.

    Raises:
        TrainingError: see its subclasses; finished work is kept and found again.
    """
    dataset = open_dataset(job.data, job.root)
    plan = Plan("base-to-new", (dataset,), job.methods, job.seeds, (job.shots,), job.overrides)
    recipe = boost_recipe(dataset, job.boost_overrides)
    student, teacher = load_backbones()
    results = Results(job.out)
    report = reproduce(plan, recipe, student, teacher, results, console, checkpoint_every=job.checkpoint_every)
    return write_report(report, results, job.out, console)


def run_bundle(
    bundle: Path,
    data: str,
    root: Path | None,
    split: Split,
    load: Callable[[], Backbone],
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """Measure one bundle on one split and write how it did.

    Args:
        bundle: its file.
        data: name or path of a data set.
        root: folder of the data sets, for a name.
        split: which of its images.
        load: loads the backbone; called once the other inputs are known to be sound.
        out: folder of the report.
        console: where progress is shown.

    Returns:
        The result as a JSON object.

    Raises:
        DatasetError: the data set cannot be read, or the split has no readable image.
        BundleInvalidError: it is no valid bundle.
        StackMismatchError: it was made for another backbone or cannot tell these classes apart.
    """
    dataset = open_dataset(data, root, single_split=split)
    n_images, read = len(dataset.split(split)), read_bundle_file(bundle)
    predictor = Predictor(load())
    with progress_bars(console) as progress:
        task = progress.add_task(f"{read.manifest.domain} on {dataset.name}", total=n_images, note="")
        result = measure_bundle(predictor, read, dataset, split, on_progress=lambda n: progress.advance(task, n))
    return write_bundle_report(result, out, console)


def _boost_of_each(sources: Sequence[Dataset], boost: Sequence[Path]) -> list[Path]:
    """One boosting bundle for every data set that is learned on, or none at all."""
    if len(boost) == 1:
        return [boost[0]] * len(sources)
    if len(boost) in {0, len(sources)}:
        return list(boost)
    named = shorten(source.name for source in sources)
    msg = f"Expected one boosting bundle, or one for each of {named}; found {len(boost)}."
    raise BoostBundleError(msg)
