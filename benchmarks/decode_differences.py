"""What the way `fast` changes against `exact`: pixels, and what models make of them.

Three questions: how far pixels lie apart, how far the features of an untrained ViT-B-16 do, and how often the packaged
demo domains, which have real weights, answer otherwise.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from benchmarks.decode_ways import LIMITS, QUALITY, SIZES, as_jpeg, mosaic, photographs
from benchmarks.machine import versions
from benchmarks.report import Report, Table
from prompt_store.bundle import read_bundle
from prompted_clip import PromptedClip, load_backbone
from service.demo.files import ASSETS, BACKBONE, SampleBundle, read_bundles
from service.images.decoder import open_rgb
from service.images.preprocessing import Exact, Fast, Pixels, Preprocessing
from training.demo.evaluate import TEST_SEED
from training.demo.render import draw_series
from training.demo.shifts import DOMAINS

N_PICTURES: Final = 32
"""Pictures drawn for each demo domain."""
DEMO_SIZES: Final = ((64, 64), (160, 120), (500, 375), (1920, 1080))
"""The demo's pictures have 64 pixels; drawn larger, they are what a client sends that scales nothing down."""

MANY_LEVELS: Final = 2
PIXEL_HEADINGS: Final = ("size", "mean difference, grey levels", "most", f"values that differ by over {MANY_LEVELS}")


def differences(console: Console) -> Report:
    """Measure all three.

    Raises:
        BenchError: scikit-image, whose photographs these are, is not installed.
    """
    report = Report(
        "decode-differences", {"pictures": N_PICTURES}, versions=versions(("pillow", "simplejpeg", "torch"))
    )
    console.print("pixels and features of photographs")
    report.tables["Photographs at 224 pixels, ViT-B-16 with random weights"] = photograph_table("ViT-B-16")
    console.print("answers of the demo domains")
    report.tables["The demo's six domains (demo-student, 64 pixels)"] = demo_table()
    report.notes.append(
        f"Photographs: scikit-image's, each scaled to the size, and all in one; JPEG, 4:2:0, quality {QUALITY}. "
        f"Demo: {N_PICTURES} drawn pictures of each domain, scaled up to the size and saved likewise, with the "
        "packaged bundles. A grey level is 1 of 255; a logit is what goes into the softmax."
    )
    return report


@dataclass(frozen=True)
class Answers:
    """What one demo domain says of its pictures in the two ways.

    Attributes:
        exact, fast: pixels, uint8 [B, 3, side, side].
        exact_logits, fast_logits: [B, K].
        labels: true classes, int64 [B].
    """

    exact: Tensor
    fast: Tensor
    exact_logits: Tensor
    fast_logits: Tensor
    labels: Tensor


def photograph_table(arch: str) -> Table:
    """Pixels and features of photographs of several sizes, in an untrained model."""
    model = PromptedClip(load_backbone(arch, random_seed=0))
    stack = model.plain_stack("photographs", ["thing"], ["a photo of a {}."])
    cells = []
    for size in SIZES:
        pictures = [*(one.resize(size, Image.Resampling.LANCZOS) for one in photographs()), mosaic(size)]
        ways = both([as_jpeg(picture) for picture in pictures], model.backbone.image_size, model.backbone.preprocess)
        with torch.inference_mode():
            exact, fast = (model.encode_images(pixels, [stack] * len(pixels)).unit_BE.float() for pixels in ways)
        cosines = (exact * fast).sum(dim=1)
        cells.append((f"{size[0]} x {size[1]}", *apart(*ways), f"{float(cosines.min()):.5f}"))
    return Table((*PIXEL_HEADINGS, "smallest cosine of features"), cells)


def demo_table() -> Table:
    """Logits and answers of the packaged domains, for pictures of their own kind."""
    model = PromptedClip(load_backbone(BACKBONE))
    bundles = read_bundles(ASSETS / "bundles")
    cells = []
    for size in DEMO_SIZES:
        found = [demo_answers(model, bundle, size) for bundle in bundles]
        logits = torch.cat([(one.exact_logits - one.fast_logits).abs().flatten() for one in found])
        first = [(one.exact_logits.argmax(1), one.fast_logits.argmax(1), one.labels) for one in found]
        exact, fast, labels = (torch.cat(column) for column in zip(*first, strict=True))
        cells.append(
            (
                f"{size[0]} x {size[1]}",
                *apart(torch.cat([one.exact for one in found]), torch.cat([one.fast for one in found])),
                f"{float(logits.mean()):.3f}",
                f"{float(logits.max()):.2f}",
                f"{int((exact != fast).sum())} of {len(labels)}",
                f"{int((exact == labels).sum())}, {int((fast == labels).sum())}",
            )
        )
    return Table(
        (*PIXEL_HEADINGS, "mean logit difference", "largest", "other first answer", "right: exact, fast"), cells
    )


def demo_answers(model: PromptedClip, bundle: SampleBundle, size: tuple[int, int]) -> Answers:
    """Draw pictures of a demo domain, save them at a size, and let its bundle look at them in both ways."""
    pictures = draw_series(TEST_SEED, N_PICTURES, restyle=DOMAINS[bundle.domain])
    drawn = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in pictures.pixels]
    files = [as_jpeg(one.resize(size, Image.Resampling.BICUBIC)) for one in drawn]
    exact, fast = both(files, model.backbone.image_size, model.backbone.preprocess)
    stack = model.load_stack(read_bundle(bundle.data))
    with torch.inference_mode():
        exact_logits, fast_logits = (
            model.logits(model.encode_images(pixels, [stack] * len(pixels)), stack) for pixels in (exact, fast)
        )
    return Answers(exact, fast, exact_logits, fast_logits, pictures.labels)


def both(files: list[bytes], side: int, values: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Pixels of some files in the two ways, exact first: uint8 [B, 3, side, side] each."""
    exact, fast = (
        torch.from_numpy(np.stack([_read(way, data) for data in files]))
        for way in (Exact(side, values), Fast(side, values))
    )
    return exact, fast


def apart(exact: Tensor, fast: Tensor) -> tuple[str, int, str]:
    """Mean and largest difference in grey levels, and the share of values that differ by more than two."""
    difference = (exact.int() - fast.int()).abs()
    share = (difference > MANY_LEVELS).float().mean()
    return f"{float(difference.float().mean()):.3f}", int(difference.max()), f"{float(share):.2%}"


def _read(way: Preprocessing, data: bytes) -> Pixels:
    picture, _ = open_rgb(data, LIMITS, way.read)
    return way.to_pixels(picture)
