"""`caspl boost` and `caspl adapt`. Imports torch only after validating the arguments."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from training import options
from training.label_free_command import LabelFreeOptions, Labels, adapt_without_labels, check_method, check_options
from training.terminal import exit_on_error, print_notes

if TYPE_CHECKING:
    from training.data.dataset import Dataset

boost_app = typer.Typer(add_completion=False, rich_markup_mode=None)
adapt_app = typer.Typer(add_completion=False, rich_markup_mode=None)

Out = Annotated[Path | None, typer.Option(help="bundle to write (default: <domain>.safetensors)")]
Domain = Annotated[str, typer.Option(help="domain name")]
RecipeFile = Annotated[Path | None, typer.Option(help="TOML recipe")]
BoostRecipeFile = Annotated[Path | None, typer.Option(help="TOML recipe, or paper for the values of CasPL's paper")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a recipe value")]
PrintRecipe = Annotated[bool, typer.Option("--print-recipe", help="print the resulting recipe and exit")]
TensorBoard = Annotated[Path | None, typer.Option(help="folder for TensorBoard event files")]
Holdout = Annotated[
    float, typer.Option(min=0, max=0.5, help="fraction of the images held out to select the best step; 0: last step")
]
KeepWorse = Annotated[bool, typer.Option("--keep-worse", help="write the bundle even if training made the model worse")]


@boost_app.command(
    epilog="\b\nExample:\n"
    "  caspl boost --images photos/ --classes classes.txt --domain shelf --pretrained openai"
    " --teacher-pretrained openai"
)
def boost(
    images: options.Sources = None,
    classes: options.ClassLists = None,
    data: options.DataSources = None,
    root: options.Root = None,
    domain: Annotated[str, typer.Option(help="domain name of the bundle")] = "",
    out: Out = None,
    backbone: Annotated[str, typer.Option(help="student model, open_clip name")] = "ViT-B-16",
    pretrained: options.Pretrained = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="teacher model, open_clip name; repeat for several, see teacher_weights (default: ViT-L-14)"),
    ] = None,
    teacher_pretrained: Annotated[
        list[str] | None, typer.Option(help="its weights: an open_clip tag or a local file; one for each teacher")
    ] = None,
    teacher_bundle: Annotated[
        list[Path] | None, typer.Option(help="prompts for the teacher of their backbone, as in PromptKD")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="boosting bundle to start from, such as one of several domains")
    ] = None,
    boost_bundle: Annotated[
        Path | None, typer.Option("--boost", help="with distillation=promptkd: boosting bundle to train on")
    ] = None,
    quick_gelu: options.QuickGelu = False,
    preprocess_of: options.PreprocessOf = None,
    teacher_preprocess_of: Annotated[
        list[str] | None, typer.Option(help="the same for the teacher's weights file; one for each teacher")
    ] = None,
    interpolate_positions: options.InterpolatePositions = False,
    random_weights: options.RandomWeights = False,
    recipe: BoostRecipeFile = None,
    set_: Overrides = None,
    print_recipe: PrintRecipe = False,
    holdout: Holdout = 0.1,
    keep_worse: KeepWorse = False,
    checkpoint_every: options.CheckpointEvery = 100,
    tensorboard: TensorBoard = None,
    device: options.Device = "auto",
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train boosting prompts for a domain on unlabelled images, with larger CLIPs as teachers (CasPL phase 1)."""
    from prompt_store.manifest import check_domain
    from training.recipe import read_boost_recipe

    with exit_on_error("boost", quiet=quiet):
        chosen = read_boost_recipe(recipe, set_ or [])
        if print_recipe:
            typer.echo(chosen.to_toml(), nl=False)
            return
        if not domain:
            raise typer.BadParameter("--domain is required")
        check_domain(domain)
        bundle = out or Path(f"{domain}.safetensors")
        if boost_bundle is not None and chosen.distillation != "promptkd":
            raise typer.BadParameter("only --set distillation=promptkd uses it", param_hint="--boost")
        if boost_bundle is not None and boost_bundle.resolve() == bundle.resolve():
            raise typer.BadParameter("would overwrite the boosting bundle; choose another file", param_hint="--out")
        from training.boost_options import SourceOptions, teacher_sources
        from training.boost_run import BoostJob, run_boost
        from training.files import read_bundle_file
        from training.hardware import BackboneSource, load_backbones
        from training.loop_progress import check_tensorboard
        from training.parallel import init_distributed
        from training.rates import boost_defaults

        if tensorboard is not None:
            check_tensorboard()
        given = SourceOptions(domain, images or [], classes or [], data or [], root)
        larger = teacher_sources(teacher or ["ViT-L-14"], teacher_pretrained or [], teacher_preprocess_of or [])
        world = init_distributed(device)
        student_backbone, *teacher_backbones = load_backbones(
            [BackboneSource(backbone, pretrained, preprocess_of), *larger],
            is_random=random_weights,
            device=world.device or device,
            quick_gelu=quick_gelu,
            interpolate_positions=interpolate_positions,
        )
        own_template = chosen.teacher_template if "teacher_template" in chosen.model_fields_set else None
        # After the weights: missing ones fail first.
        sources = given.read(Console(stderr=True, quiet=quiet), own_template)
        if len(sources) == 1 and (template := next(iter(sources.values())).template):
            chosen = chosen.model_copy(update={"teacher_template": template})
        console = _console(is_shown=world.is_main and not quiet)
        chosen = boost_defaults(chosen, student_backbone, console)
        job = BoostJob(
            domain=domain,
            sources=sources,
            out=bundle,
            checkpoint=_checkpoint_path(bundle),
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            teacher_bundles=[read_bundle_file(path) for path in teacher_bundle or []],
            start=read_bundle_file(start) if start is not None else None,
            boost=read_bundle_file(boost_bundle) if boost_bundle is not None else None,
            holdout=holdout,
            keep_worse=keep_worse,
        )
        result = run_boost(job, chosen, student_backbone, teacher_backbones, console, world=world)
        if world.is_main:
            _print_result("boosted", result, as_json=json_)


@adapt_app.command(
    epilog="\b\nExample:\n"
    "  caspl adapt --method promptsrc --data labelled/ --domain shelf --pretrained openai --boost shelf.safetensors"
)
def adapt(
    method: Annotated[
        str,
        typer.Option(
            help="coop, cocoop, vpt, ivlp, maple, promptsrc, prograd, dept, upt, tcp, gda, ridge or tip-adapter; "
            "with --labels none: upl, grip, transclip, lp-clip or lafter"
        ),
    ],
    context: typer.Context,
    labels: Annotated[
        Labels, typer.Option(help="none: learn from images and class names alone; labels in --data are not read")
    ] = Labels.GIVEN,
    data: options.LabelledData = "",
    images: Annotated[  # noqa: ARG001  read from the context
        Path | None, typer.Option(exists=True, help="with --labels none, instead of --data: folder of images")
    ] = None,
    classes: Annotated[  # noqa: ARG001  read from the context
        Path | None, typer.Option(exists=True, help="with --images: text file, one class name per line")
    ] = None,
    root: options.Root = None,
    shots: options.Shots = 16,
    strict: options.Strict = False,
    domain: Domain = "",
    out: Annotated[Path | None, typer.Option(help="bundle to write (default: <domain>-<method>.safetensors)")] = None,
    boost: Annotated[
        Path | None, typer.Option(help="boosting bundle to adapt on (default: the plain backbone)")
    ] = None,
    backbone: Annotated[str, typer.Option(help="model, open_clip name")] = "ViT-B-16",
    pretrained: options.Pretrained = None,
    teacher: Annotated[  # noqa: ARG001  read from the context
        str, typer.Option(help="with --labels none: model that predicts the pseudo-labels (default: the base model)")
    ] = "",
    teacher_pretrained: options.Pretrained = None,  # noqa: ARG001  read from the context
    quick_gelu: options.QuickGelu = False,
    preprocess_of: options.PreprocessOf = None,
    teacher_preprocess_of: options.TeacherPreprocessOf = None,  # noqa: ARG001  read from the context
    interpolate_positions: options.InterpolatePositions = False,
    random_weights: options.RandomWeights = False,
    recipe: RecipeFile = None,
    set_: Overrides = None,
    print_recipe: PrintRecipe = False,
    holdout: Holdout = 0.1,
    keep_worse: KeepWorse = False,
    checkpoint_every: options.CheckpointEvery = 100,
    tensorboard: TensorBoard = None,
    device: options.Device = "auto",
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train adapting prompts on a few labelled images, on top of frozen boosting prompts if given (CasPL phase 2)."""
    with exit_on_error("adapt", quiet=quiet):
        from prompt_store.manifest import check_domain
        from training.adapt_run import AdaptJob, run_adapt
        from training.adapting.methods import RECIPES
        from training.data.catalog import open_dataset
        from training.data.hold_out import describe_held_out
        from training.fit_command import drop_and_report, fit_base_model
        from training.parallel import init_distributed
        from training.prompted_backbone import load_prompted_backbone
        from training.rates import scale_rate
        from training.recipe import FewShotRecipe, read_recipe

        check_method(method, labels)
        check_options(context, method, labels)
        if labels is Labels.NONE:
            result = adapt_without_labels(LabelFreeOptions.of(context.params))
            if result is not None:
                _print_result("adapted", result, as_json=json_)
            return
        chosen = read_recipe(RECIPES[method], recipe, set_ or [], table=method)
        if print_recipe:
            typer.echo(chosen.to_toml(), nl=False)
            return
        if not data or not domain:
            raise typer.BadParameter("--data and --domain are required")
        check_domain(domain)
        bundle = out or Path(f"{domain}-{method}.safetensors")
        if boost is not None and boost.resolve() == bundle.resolve():
            raise typer.BadParameter("would overwrite the boosting bundle; choose another file", param_hint="--out")
        dataset = open_dataset(data, root)
        print_notes(dataset.notes, Console(stderr=True, quiet=quiet))
        if "template" in type(chosen).model_fields.keys() - chosen.model_fields_set:
            chosen = chosen.model_copy(update={"template": dataset.template})
        dataset = _sample(dataset, shots, chosen.seed, holdout=0 if isinstance(chosen, FewShotRecipe) else holdout)
        world = init_distributed(device)
        console = _console(is_shown=world.is_main and not quiet)
        base_model = load_prompted_backbone(
            backbone,
            pretrained,
            boost,
            is_random=random_weights,
            device=world.device or device,
            quick_gelu=quick_gelu,
            preprocess_of=preprocess_of,
            interpolate_positions=interpolate_positions,
        )
        dataset = drop_and_report(dataset, ("train", "val"), Console(stderr=True, quiet=quiet), strict=strict)
        if isinstance(chosen, FewShotRecipe):
            fit_base_model(method, dataset, domain, bundle, base_model, console, as_json=json_)
            return
        if "val" not in dataset.splits:
            console.print(describe_held_out(0, len(dataset.split("train"))), soft_wrap=True)
        chosen = scale_rate(chosen, base_model.backbone, console)
        job = AdaptJob(
            domain=domain,
            dataset=dataset,
            out=bundle,
            checkpoint=_checkpoint_path(bundle),
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            select="val" in dataset.splits,
            keep_worse=keep_worse,
        )
        result = run_adapt(job, method, chosen, base_model, console, world=world)
        if world.is_main:
            _print_result("adapted", {key: value for key, value in result.items() if key != "losses"}, as_json=json_)


def _sample(dataset: "Dataset", shots: int, seed: int, *, holdout: float) -> "Dataset":
    """Hold out a fraction of the train images, and draw the shots from the others; 0 shots for all."""
    from training.data.few_shot import few_shot
    from training.data.hold_out import hold_out_per_class

    dataset = hold_out_per_class(dataset, holdout, seed)
    return few_shot(dataset, shots, seed=seed) if shots else dataset


def _checkpoint_path(bundle: Path) -> Path:
    """The checkpoint next to the bundle: its file name plus `.checkpoint`."""
    return bundle.with_name(f"{bundle.name}.checkpoint")


def _console(*, is_shown: bool) -> Console:
    """A console on stderr."""
    return Console(stderr=True, quiet=not is_shown)


def _print_result(title: str, result: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    from rich.table import Table

    table = Table("measure", "value", title=title)
    for key, value in result.items():
        table.add_row(key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
