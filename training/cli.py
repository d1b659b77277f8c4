"""`caspl boost`: the command line of phase 1. Imports torch only once the arguments are known to be sound."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

boost_app = typer.Typer(add_completion=False)


@boost_app.command()
def boost(
    images: Annotated[Path | None, typer.Option(help="folder of unlabelled images of the domain")] = None,
    classes: Annotated[Path | None, typer.Option(help="text file, one class name per line")] = None,
    domain: Annotated[str, typer.Option(help="the domain's name in the service")] = "",
    out: Annotated[Path | None, typer.Option(help="bundle to write; default <domain>.safetensors")] = None,
    backbone: Annotated[str, typer.Option(help="student, by open_clip name")] = "ViT-B-16",
    pretrained: Annotated[str | None, typer.Option(help="student weights: tag or local file")] = None,
    teacher: Annotated[str, typer.Option(help="teacher, by open_clip name")] = "ViT-L-14",
    teacher_pretrained: Annotated[str | None, typer.Option(help="teacher weights: tag or local file")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="random student and teacher, to try a pipeline out")
    ] = False,
    recipe: Annotated[Path | None, typer.Option(help="TOML recipe")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override one recipe key: key=value")] = None,
    print_recipe: Annotated[bool, typer.Option("--print-recipe", help="print the recipe in force and stop")] = False,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="steps between checkpoints")] = 100,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="print the result as one JSON object")] = False,
) -> None:
    """Learn boosting prompts for a domain from unlabelled images and a larger CLIP (CasPL phase 1)."""
    from prompt_store.errors import PromptStoreError
    from training.errors import TrainingError
    from training.recipe import BoostRecipe, read_recipe

    console = Console(stderr=True)
    try:
        chosen = read_recipe(BoostRecipe, recipe, set_ or [])
        if print_recipe:
            typer.echo(chosen.to_toml(), nl=False)
            return
        if images is None or classes is None or not domain:
            raise typer.BadParameter("--images, --classes and --domain are needed")
        from prompted_clip.errors import PromptedClipError
        from training.boost_run import BoostJob, run_boost
        from training.hardware import load_pair

        try:
            student, teach = load_pair(
                backbone, pretrained, teacher, teacher_pretrained, is_random=random_weights, device=device
            )
            bundle = out or Path(f"{domain}.safetensors")
            job = BoostJob(domain, images, classes, bundle, bundle.with_suffix(".checkpoint"), checkpoint_every)
            result = run_boost(job, chosen, student, teach, console)
        except PromptedClipError as error:
            raise TrainingError(str(error)) from error
    except (TrainingError, PromptStoreError) as error:
        console.print(f"[red]caspl boost:[/red] {error}")
        raise typer.Exit(1) from error
    if json_:
        typer.echo(json.dumps(result))
    else:
        _show(result, Console())


def _show(result: dict[str, object], console: Console) -> None:
    from rich.table import Table

    table = Table("measure", "value", title="boosted")
    for key, value in result.items():
        table.add_row(key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
