"""The commands `pretrain-student`, `pretrain-teacher` and `pretrain-second-teacher`."""

from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.demo.models import CONFIG_DIR, export_weights
from training.demo.plans import SECOND_TEACHER_PLAN, STUDENT_PLAN, TEACHER_PLAN
from training.demo.pretrain import CheckpointMismatchError, PretrainPlan, Progress, pretrain

WORK_DIR: Final = Path("build/demo")
N_STEPS_PER_LINE: Final = 100

WorkDir = Annotated[Path, typer.Option(help="Folder for checkpoints; interrupted runs resume from them.")]
OutDir = Annotated[Path, typer.Option(help="Folder for the exported float16 weights.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads; the number affects rounding.")]

console = Console(stderr=True)


def _train(plan: PretrainPlan, work_dir: Path, out_dir: Path, n_threads: int, grow_from: Path | None = None) -> None:
    """Run one plan with a progress bar and export the weights; exit code 1 if it cannot start."""
    torch.set_num_threads(n_threads)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(plan.arch, total=plan.n_steps)

        def show(p: Progress) -> None:
            bar.update(task, completed=p.step)
            if p.step % N_STEPS_PER_LINE == 0:
                bar.console.print(
                    f"{plan.arch} step {p.step}: class loss {p.class_loss:.3f}, other {p.other_loss:.3f}, "
                    f"heads {p.head_loss:.3f}, batch accuracy {p.class_accuracy:.2f}",
                    highlight=False,
                    soft_wrap=True,
                )

        try:
            run = pretrain(plan, work_dir / f"{plan.arch}.ckpt", grow_from=grow_from, on_step=show)
        except (CheckpointMismatchError, FileNotFoundError) as error:
            console.print(f"[red]{error}[/red]")
            raise typer.Exit(1) from error
    path = out_dir / f"{plan.arch}.safetensors"
    n_bytes = export_weights(run.model, run.book.vocabulary_V, path)
    console.print(f"wrote {path}, {n_bytes:,} bytes", soft_wrap=True)


def pretrain_student(work_dir: WorkDir = WORK_DIR, out_dir: OutDir = CONFIG_DIR, threads: Threads = 2) -> None:
    """Train the student on clean images."""
    _train(STUDENT_PLAN, work_dir, out_dir, threads)


def pretrain_teacher(work_dir: WorkDir = WORK_DIR, out_dir: OutDir = CONFIG_DIR, threads: Threads = 2) -> None:
    """Grow the teacher from the student's checkpoint and train it on augmented images."""
    _train(TEACHER_PLAN, work_dir, out_dir, threads, grow_from=work_dir / f"{STUDENT_PLAN.arch}.ckpt")


def pretrain_second_teacher(work_dir: WorkDir = WORK_DIR, out_dir: OutDir = CONFIG_DIR, threads: Threads = 1) -> None:
    """Grow the second teacher from the student's exported weights and train it on images in synthesised styles."""
    _train(SECOND_TEACHER_PLAN, work_dir, out_dir, threads, grow_from=CONFIG_DIR / f"{STUDENT_PLAN.arch}.safetensors")
