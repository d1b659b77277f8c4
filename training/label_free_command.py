"""`caspl adapt --labels none`: its options, and the run. Imports torch only after validating the arguments."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import typer
from rich.console import Console

from training.options import given
from training.terminal import print_notes

if TYPE_CHECKING:
    from prompted_clip.backbone import Backbone, WeightOptions
    from training.data.images import ImageFolder


class Labels(StrEnum):
    """Which labels a method learns from."""

    GIVEN = "given"
    NONE = "none"


_ONLY_WITH_LABELS: Final = {
    "shots": "the number of pseudo-labelled images is a recipe value",
    "holdout": "accuracy cannot be measured without labels",
    "keep_worse": "accuracy cannot be measured without labels",
}
_ONLY_WITH_STEPS: Final = ("checkpoint_every", "holdout", "keep_worse", "tensorboard")
_ONLY_WITHOUT_LABELS: Final = ("images", "classes", "teacher", "teacher_pretrained", "teacher_preprocess_of")


@dataclass(frozen=True)
class LabelFreeOptions:
    """The options of `caspl adapt` that apply without labels, as in its help."""

    method: str
    data: str
    root: Path | None
    images: Path | None
    classes: Path | None
    strict: bool
    domain: str
    out: Path | None
    boost: Path | None
    backbone: str
    pretrained: str | None
    teacher: str
    teacher_pretrained: str | None
    quick_gelu: bool
    preprocess_of: str | None
    teacher_preprocess_of: str | None
    interpolate_positions: bool
    random_weights: bool
    recipe: Path | None
    set_: list[str] | None
    print_recipe: bool
    checkpoint_every: int
    tensorboard: Path | None
    device: str
    quiet: bool

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Select them from all options of the command."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def weights(self) -> "WeightOptions":
        """Options of a local weights file."""
        return {
            "quick_gelu": self.quick_gelu,
            "preprocess_of": self.preprocess_of,
            "interpolate_positions": self.interpolate_positions,
        }


def check_options(context: typer.Context, method: str, labels: Labels) -> None:
    """Reject options that have no effect on a method, with or without labels.

    Raises:
        BadParameter: names the first such option and the reason.
    """
    from training.adapting.methods import RECIPES  # noqa: PLC0415  loads torch
    from training.label_free.methods import LABEL_FREE  # noqa: PLC0415  loads torch
    from training.recipe import AdaptRecipe, Settings  # noqa: PLC0415

    recipe: type[Settings]
    if labels is Labels.GIVEN:
        recipe = RECIPES[method]
        reasons = dict.fromkeys(_ONLY_WITHOUT_LABELS, "only --labels none uses it")
    else:
        recipe = LABEL_FREE[method].recipe
        reasons = {name: f"--labels none does not use it: {reason}" for name, reason in _ONLY_WITH_LABELS.items()}
    if not issubclass(recipe, AdaptRecipe):
        reasons = dict.fromkeys(_ONLY_WITH_STEPS, f"{method} has no training steps") | reasons
    passed = given(context)
    for name, reason in reasons.items():
        if name in passed:
            raise typer.BadParameter(reason, param_hint=f"--{name.replace('_', '-')}")


def check_method(method: str, labels: Labels) -> None:
    """Check that there is such a method.

    Raises:
        BadParameter: an unknown method, or one that learns from other labels; names those that do.
    """
    from prompted_clip.errors import did_you_mean  # noqa: PLC0415  loads torch
    from training.adapting.methods import RECIPES  # noqa: PLC0415  loads torch
    from training.label_free.methods import LABEL_FREE  # noqa: PLC0415  loads torch

    known: Iterable[str] = RECIPES if labels is Labels.GIVEN else LABEL_FREE
    if method in known:
        return
    if method in LABEL_FREE:
        problem = f"{method} learns without labels: add --labels none."
    elif method in RECIPES:
        problem = f"{method} learns from labels."
    else:
        problem = f"unknown method {method!r}.{did_you_mean(method, known)}"
    of = " without labels" if labels is Labels.NONE else ""
    raise typer.BadParameter(f"{problem} Known methods{of}: {', '.join(known)}", param_hint="--method")


def adapt_without_labels(options: LabelFreeOptions) -> dict[str, Any] | None:
    """Run a label-free method, or print its recipe.

    Returns:
        The result for the terminal; None if the recipe was printed, or in a process other than the main one.

    Raises:
        BadParameter: missing or contradictory options.
        TrainingError: see `run_label_free`.
    """
    from prompt_store.manifest import check_domain  # noqa: PLC0415
    from training.label_free.methods import LABEL_FREE  # noqa: PLC0415  torch
    from training.label_free_run import NO_CHECK, LabelFreeJob, run_label_free  # noqa: PLC0415  torch
    from training.loop_progress import check_tensorboard  # noqa: PLC0415  torch
    from training.parallel import init_distributed  # noqa: PLC0415  torch
    from training.prompted_backbone import load_prompted_backbone  # noqa: PLC0415  torch
    from training.rates import scale_rate  # noqa: PLC0415  torch
    from training.recipe import AdaptRecipe, read_recipe  # noqa: PLC0415  torch
    from training.unlabelled import report_folder  # noqa: PLC0415  torch

    entry = LABEL_FREE[options.method]
    recipe = read_recipe(entry.recipe, options.recipe, options.set_ or [], table=options.method)
    if options.print_recipe:
        typer.echo(recipe.to_toml(), nl=False)
        return None
    _check_inputs(options)
    if options.teacher and not entry.takes_teacher:
        raise typer.BadParameter(f"{options.method} uses the base model's own predictions", param_hint="--teacher")
    check_domain(options.domain)
    if options.tensorboard is not None:
        check_tensorboard()
    out = options.out or Path(f"{options.domain}-{options.method}.safetensors")
    if options.boost is not None and options.boost.resolve() == out.resolve():
        raise typer.BadParameter("would overwrite the boosting bundle; choose another file", param_hint="--out")
    world = init_distributed(options.device)
    console = Console(stderr=True, quiet=options.quiet or not world.is_main)
    folder, names, template = _read(options, console)
    report_folder(folder, console)
    device = world.device or options.device
    base_model = load_prompted_backbone(
        options.backbone,
        options.pretrained,
        options.boost,
        is_random=options.random_weights,
        device=device,
        **options.weights(),
    )
    if template is not None and "template" not in recipe.model_fields_set:
        recipe = recipe.model_copy(update={"template": template})
    if isinstance(recipe, AdaptRecipe):
        recipe = scale_rate(recipe, base_model.backbone, console)
    console.print(NO_CHECK, markup=False, highlight=False, soft_wrap=True)
    job = LabelFreeJob(
        domain=options.domain,
        images=folder,
        class_names=names,
        out=out,
        checkpoint=out.with_name(f"{out.name}.checkpoint"),
        checkpoint_every=options.checkpoint_every,
        tensorboard=options.tensorboard,
        teacher=_load_teacher(options, device),
    )
    result = run_label_free(job, options.method, recipe, base_model, console, world=world)
    return {key: value for key, value in result.items() if key != "losses"} if world.is_main else None


def _check_inputs(options: LabelFreeOptions) -> None:
    given = [path is not None for path in (options.images, options.classes)]
    if not options.domain or any(given) != all(given) or any(given) == bool(options.data):
        raise typer.BadParameter("--domain and either --data, or --images and --classes, are required")
    if options.root is not None and not options.data:
        raise typer.BadParameter("only --data uses it", param_hint="--root")
    for value, name in (
        (options.teacher_pretrained, "--teacher-pretrained"),
        (options.teacher_preprocess_of, "--teacher-preprocess-of"),
    ):
        if value is not None and not options.teacher:
            raise typer.BadParameter("only --teacher uses it", param_hint=name)


def _read(options: LabelFreeOptions, console: Console) -> "tuple[ImageFolder, Sequence[str], str | None]":
    """Images ordered by content, class names, and the data set's template, or None for a folder."""
    from training.data.catalog import open_dataset  # noqa: PLC0415  torch
    from training.data.class_list import read_classes  # noqa: PLC0415  torch
    from training.errors import NoImagesError  # noqa: PLC0415  torch
    from training.unlabelled import by_content, read_images, train_images_without_labels  # noqa: PLC0415  torch

    if options.images is not None and options.classes is not None:
        names: Sequence[str] = read_classes(options.classes)
        folder, template = by_content(read_images(options.images, console)), None
    else:
        dataset = open_dataset(options.data, options.root)
        print_notes(dataset.notes, console)
        folder, names, template = train_images_without_labels(dataset, console), dataset.class_names, dataset.template
    if options.strict and folder.unreadable:
        msg = f"{len(folder.unreadable)} images in {folder.root} are unreadable. Replace or remove them."
        raise NoImagesError(msg)
    return folder, names, template


def _load_teacher(options: LabelFreeOptions, device: str) -> "Backbone | None":
    """The larger CLIP that predicts the pseudo-labels, or None for the base model."""
    from prompted_clip.backbone import load_backbone  # noqa: PLC0415  torch
    from training.hardware import resolve_device  # noqa: PLC0415  torch

    if not options.teacher:
        return None
    weights: WeightOptions = {**options.weights(), "preprocess_of": options.teacher_preprocess_of}
    return load_backbone(
        options.teacher,
        pretrained=options.teacher_pretrained,
        random_seed=1 if options.random_weights else None,
        device=resolve_device(device),
        **weights,
    )
