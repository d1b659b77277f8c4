"""A whole table as one run: every data set, method, number of shots and seed, without and with boosting prompts.

Knows the order of the work and says how far it has come. Does not know how a single row is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.data.dataset import Dataset
from training.errors import DatasetError
from training.evaluation.bench import Bench, Trial
from training.evaluation.paper_recipes import adapt_recipe, check_overrides
from training.evaluation.protocols import across, all_classes, base_to_new, check_variant, to_variant
from training.evaluation.rows import Protocol, Row
from training.evaluation.summary import Report


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        protocol: how.
        datasets: in base-to-new and few-shot each for itself; otherwise learn on the first and test on all.
        methods: keys of `METHODS`; the base model itself is always measured as well.
        seeds: of draw and training.
        shots: training images per class.
        overrides: recipe values as `key=value` or `method.key=value`.

    Raises:
        DatasetError: no data set or one twice, one without the images that its part needs, or classes of a variant
            that the first data set does not have.
        RecipeError: an override that no method takes, or out of range.
    """

    protocol: Protocol
    datasets: tuple[Dataset, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    shots: tuple[int, ...] = (16,)
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would fail in the middle of the run, as far as it can be told now."""
        names = [dataset.name for dataset in self.datasets]
        if len(set(names)) < len(names) or not names:
            msg = f"Expected different data sets, at least one, found {', '.join(names) or 'none'}."
            raise DatasetError(msg)
        check_overrides(self.methods, self.overrides)
        for source in self.sources:
            if self.methods:
                source.split("train")
            for target in self.targets(source):
                target.split("test")
                if self.protocol == "domain-generalisation":
                    check_variant(source, target)
            self.trials(source)

    @property
    def sources(self) -> tuple[Dataset, ...]:
        """What is learned on."""
        return self.datasets if self.protocol in {"base-to-new", "few-shot"} else self.datasets[:1]

    def targets(self, source: Dataset) -> tuple[Dataset, ...]:
        """What is tested on."""
        return (source,) if self.protocol in {"base-to-new", "few-shot"} else self.datasets

    def trials(self, source: Dataset) -> list[Trial]:
        """The base model itself, then every method, number of shots and seed.

        Raises:
            RecipeError: an override is out of range.
        """
        trials = [Trial()]
        for method in self.methods:
            for shots in self.shots:
                recipe = adapt_recipe(method, source, self.protocol, shots=shots, overrides=self.overrides)
                trials += [Trial.of(method, recipe, shots=shots, seed=seed) for seed in self.seeds]
        return trials


def run_plan(plan: Plan, benches: Sequence[Sequence[Bench]]) -> Report:
    """Measure everything that is not yet measured.

    Args:
        plan: what.
        benches: for each of the plan's sources the benches to run its trials on, all on one backbone.

    Raises:
        TrainingError: a training or measurement failed; rows that were finished before are kept.
    """
    # Targets outside trials: the pixels of a target are then decoded once for all of them.
    work = [
        (bench, source, target, trial)
        for source, own in zip(plan.sources, benches, strict=True)
        for target in plan.targets(source)
        for bench in own
        for trial in plan.trials(source)
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
    facts = {"arch": backbone.arch, "pretrained": backbone.pretrained, "fingerprint": backbone.fingerprint}
    return Report(plan.protocol, facts, tuple(rows))


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
