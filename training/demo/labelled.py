"""Draws labelled images of demo domains, with a bundle of the plain student for each: the inputs of `make demo`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prompt_store.bundle import write_bundle
from training.data.folder_per_class import read_class_folders
from training.demo.folders import write_labelled
from training.demo.world import CLASS_NAMES
from training.fit_run import zero_shot_bundle
from training.prompted_backbone import load_prompted_backbone


def main(
    out_dir: Annotated[Path, typer.Argument(help="An empty or missing folder; each domain gets a subfolder.")],
    domains: Annotated[list[str], typer.Argument(help="Names of demo domains.")],
    shots: Annotated[int, typer.Option(min=1, help="Labelled images per class in train/<class>/.")] = 8,
    n_test: Annotated[int, typer.Option(min=1, help="Images per domain in test/<class>/.")] = 600,
    classes: Annotated[int, typer.Option(min=2, max=len(CLASS_NAMES), help="Draw the first classes only.")] = len(
        CLASS_NAMES
    ),
    seed: Annotated[int, typer.Option(min=0, help="Test series of the first domain; the next follow.")] = 600,
) -> None:
    """Draw labelled images of domains, and write `<domain>-plain.safetensors` with the student without prompts."""
    student = load_prompted_backbone("demo-student", None, None, is_random=False, device="cpu")
    for place, domain in enumerate(domains):
        try:
            folder, test_seed = out_dir / domain, seed + place
            write_labelled(domain, folder, shots=shots, n_test=n_test, test_seed=test_seed, n_classes=classes)
        except (ValueError, FileExistsError) as error:
            Console(stderr=True).print(str(error), style="red", markup=False)
            raise typer.Exit(1) from error
        bundle = zero_shot_bundle(student, read_class_folders(out_dir / domain), domain)
        plain_file = out_dir / f"{domain}-plain.safetensors"
        plain_file.write_bytes(write_bundle(bundle.manifest, bundle.tensors))
        typer.echo(f"{folder}/train: {shots} images of each of {classes} classes")
        typer.echo(f"{folder}/test: {n_test} other images of these classes")
        typer.echo(f"{plain_file}: a bundle of the plain student, to compare with")


if __name__ == "__main__":
    typer.run(main)
