"""Runs a whole table: all data sets, methods, shots and seeds, with and without boosting prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.data.dataset import Dataset
from training.errors import DatasetError
from training.evaluation.bench import Bench, Trial
from training.evaluation.paper_recipes import adapt_recipe, check_overrides
from training.evaluation.protocols import across, all_classes, base_to_new, check_variant, to_variant
from training.evaluation.rows import Protocol, Row
from training.evaluation.summary import Report
from training.label_free.methods import LABEL_FREE


@dataclass(frozen=True)
class Plan:
    """The runs of a table.

    Attributes:
        protocol: evaluation protocol.
        datasets: base-to-new and few-shot: each is trained and tested separately; else train on the first, test on all.
        methods: keys of `ALL_RECIPES`; the zero-shot base model is always included.
        seeds: seeds of sampling and training.
        shots: training images per class.
        overrides: recipe values as `key=value` or `method.key=value`.

    Raises:
        DatasetError: no data sets or a duplicate, missing train or test images, or a variant with classes that the
            first data set does not have.
        RecipeError: an override that applies to no method, or is out of range.
    """

    protocol: Protocol
    datasets: tuple[Dataset, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    shots: tuple[int, ...] = (16,)
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate, so that errors appear before the run starts."""
        names = [dataset.name for dataset in self.datasets]
        if len(set(names)) < len(names) or not names:
            msg = f"At least one data set is required, without duplicates; found {', '.join(names) or 'none'}."
            raise DatasetError(msg)
        check_overrides(self.methods, self.overrides)
        for source in self.sources:
            if self.methods:
                source.split("train")
            for target in self.targets(source):
                target.split("test")
                if self.protocol == "domain-generalisation":
                    check_variant(source, target)
            for boosted in (False, True):
                self.trials(source, boosted=boosted)

    @property
    def sources(self) -> tuple[Dataset, ...]:
        """Data sets to train on."""
        return self.datasets if self.protocol in {"base-to-new", "few-shot"} else self.datasets[:1]

    def targets(self, source: Dataset) -> tuple[Dataset, ...]:
        """Data sets to test on."""
        return (source,) if self.protocol in {"base-to-new", "few-shot"} else self.datasets

    def trials(self, source: Dataset, *, boosted: bool = False) -> list[Trial]:
        """The zero-shot trial, then all methods, shots and seeds; label-free methods use no shots.

        The recipes are those for a plain or a boosted backbone.

        Raises:
            RecipeError: an override is out of range.
        """
        trials = [Trial()]
        for method in self.methods:
            for shots in self.shots[:1] if method in LABEL_FREE else self.shots:
                recipe = adapt_recipe(
                    method, source, self.protocol, shots=shots, boosted=boosted, overrides=self.overrides
                )
                seeds = self.seeds if "seed" in type(recipe).model_fields else self.seeds[:1]
                trials += [Trial.of(method, recipe, shots=shots, seed=seed) for seed in seeds]
        return trials


def run_plan(plan: Plan, benches: Sequence[Sequence[Bench]]) -> Report:
    """Run all trials that have no result yet.

    Args:
        plan: the runs.
        benches: for each source the benches for its trials, all on one backbone.

    Raises:
        TrainingError: a trial failed; finished rows are kept.
    """
    # Targets in the outer loop, so that each target's images are decoded once.
    work = [
        (bench, source, target, trial)
        for source, own in zip(plan.sources, benches, strict=True)
        for target in plan.targets(source)
        for bench in own
        for trial in plan.trials(source, boosted=bench.is_boosted)
    ]
    rows = []
    for number, (bench, source, target, trial) in enumerate(work, 1):
        seed = f", {trial.shots} shots, seed {trial.seed}" if trial.seed is not None else ""
        place = source.name if target is source else f"{source.name} to {target.name}"
        bench.console.print(
            f"{number}/{len(work)}  {plan.protocol}, {place}: {trial.method}{bench.suffix}{seed}",
            markup=False,
            highlight=False,
        )
        rows.append(_measure(plan.protocol, bench, source, target, trial))
    backbone = benches[0][0].base_model.backbone
    return Report(plan.protocol, backbone.identity, tuple(rows))


def _measure(protocol: Protocol, bench: Bench, source: Dataset, target: Dataset, trial: Trial) -> Row:
    match protocol:
        case "base-to-new":
            return base_to_new(bench, source, trial)
        case "few-shot":
            return all_classes(bench, source, trial)
        case "cross-dataset":
            return across(bench, source, target, trial)
        case "domain-generalisation":
            return to_variant(bench, source, target, trial)
