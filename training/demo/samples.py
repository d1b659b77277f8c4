"""What the service's demo carries: sample pictures of two domains and one further bundle to swap in."""

from pathlib import Path
from typing import Final

from PIL import Image
from rich.console import Console

from prompted_clip.backbone import load_backbone
from training.demo.boost_domains import RECIPE, boost_domain
from training.demo.render import draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import CLASS_NAMES
from training.recipe import BoostRecipe, read_recipe

SAMPLE_SEED: Final = 700
SAMPLE_DOMAINS: Final = ("thermal", "satellite")
UPLOAD_DOMAIN: Final = "thermal"
UPLOAD_SEED: Final = 2
N_SAMPLES: Final = 4
_JPEG_QUALITY: Final = 90


def write_samples(out_dir: Path) -> list[Path]:
    """Write sample pictures as `<domain>/<class>-<n>.jpg` and `.png`, in turn.

    They are the first pictures of a series that neither training nor measuring draws from; none is picked by hand.
    """
    written = []
    for domain in SAMPLE_DOMAINS:
        pictures = draw_series(SAMPLE_SEED, N_SAMPLES, restyle=DOMAINS[domain])
        (out_dir / domain).mkdir(parents=True, exist_ok=True)
        for index, label in enumerate(pictures.labels.tolist()):
            suffix = "jpg" if index % 2 == 0 else "png"
            path = out_dir / domain / f"{CLASS_NAMES[label].replace(' ', '-')}-{index + 1}.{suffix}"
            pixels_HWC = pictures.pixels[index].permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels_HWC).save(path, quality=_JPEG_QUALITY)
            written.append(path)
    return written


def write_upload(out_dir: Path, work_dir: Path, console: Console) -> Path:
    """Boost one domain once more from another seed: the version that the demo uploads and swaps in."""
    recipe = read_recipe(BoostRecipe, RECIPE).model_copy(update={"seed": UPLOAD_SEED})
    path = out_dir / f"{UPLOAD_DOMAIN}-seed-{UPLOAD_SEED}.safetensors"
    student, teacher = load_backbone("demo-student"), load_backbone("demo-teacher")
    boost_domain(UPLOAD_DOMAIN, path, work_dir, student, teacher, recipe, console)
    return path
