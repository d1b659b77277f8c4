"""Files of the service's demo: sample images of two domains, and a bundle to upload."""

import tempfile
from pathlib import Path
from typing import Final

from PIL import Image
from rich.console import Console

from training.adapt_run import AdaptJob, run_adapt
from training.data.folder_per_class import read_class_folders
from training.demo.adapt_domains import SHOTS, read_recipes
from training.demo.folders import write_labelled
from training.demo.render import draw_series
from training.demo.shifts import DOMAINS
from training.demo.world import CLASS_NAMES
from training.prompted_backbone import load_prompted_backbone

SAMPLE_SEED: Final = 700
SAMPLE_DOMAINS: Final = ("thermal", "satellite")
UPLOAD_DOMAIN: Final = "thermal"
UPLOAD_METHOD: Final = "promptsrc"
N_SAMPLES: Final = 4
_JPEG_QUALITY: Final = 90


def write_samples(out_dir: Path) -> list[Path]:
    """Write sample images as `<domain>/<class>-<n>.jpg` and `.png`, alternating.

    They are the first images of a series that neither training nor evaluation uses; not hand-picked.
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


def write_upload(out_dir: Path, bundles: Path, work_dir: Path, console: Console) -> Path:
    """Adapt one boosted domain on a few labelled images of all classes: the bundle that the demo uploads.

    Args:
        out_dir: folder for the bundle; an existing one is replaced.
        bundles: folder of the boosting bundles.
        work_dir: folder for the checkpoint.
        console: shows progress.
    """
    base_model = load_prompted_backbone(
        "demo-student", None, bundles / f"{UPLOAD_DOMAIN}.safetensors", is_random=False, device="cpu"
    )
    path = out_dir / f"{UPLOAD_DOMAIN}-{UPLOAD_METHOD}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        write_labelled(UPLOAD_DOMAIN, Path(folder) / UPLOAD_DOMAIN, shots=SHOTS, n_test=1, test_seed=SAMPLE_SEED)
        dataset = read_class_folders(Path(folder) / UPLOAD_DOMAIN)
        job = AdaptJob(UPLOAD_DOMAIN, dataset, path, work_dir / f"{path.stem}.checkpoint")
        run_adapt(job, UPLOAD_METHOD, read_recipes()[UPLOAD_METHOD], base_model, console)
    for other in out_dir.glob("*.safetensors"):
        if other != path:
            other.unlink()
    return path
