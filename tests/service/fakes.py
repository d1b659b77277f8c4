"""A model that knows colours, and bundles for it: everything the service needs, in microseconds.

Its joint space is RGB: an image's features are its mean colour, a class's features are its colour.
"""

import dataclasses
import io
import threading
import time
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from prompt_store.bundle import write_bundle
from prompt_store.manifest import (
    BackboneSpec,
    ClassSpec,
    GroupSpec,
    GroupsSpec,
    Manifest,
    Provenance,
    StackSpec,
)
from prompted_clip.backbone import Backbone
from prompted_clip.errors import StackMismatchError, TextTooLongError
from prompted_clip.heads import ImageFeatures
from prompted_clip.scoring import Ranked
from prompted_clip.stack import PromptStack

FINGERPRINT = "sha256:" + "ab" * 32
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "shortest"}


@dataclasses.dataclass(frozen=True)
class FakeBackbone:
    arch: str = "colours"
    pretrained: str = "none"
    fingerprint: str = FINGERPRINT
    image_size: int = 16
    preprocess: dict = dataclasses.field(default_factory=lambda: dict(PREPROCESS))
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    logit_scale: float = 10.0
    spec = Backbone.spec


class FakeBank:
    """Notes the pinned stacks."""

    def __init__(self):
        self.observer = None
        self.pinned = []

    def pin(self, stack):
        self.pinned.append(stack)


class FakeModel:
    """Answers by colour; can be held, slowed down or made to fail."""

    def __init__(self):
        self.backbone = FakeBackbone()
        self.image_tower = SimpleNamespace(backend="torch", dtype="float32")
        self.bank = FakeBank()
        self.gate = threading.Event()
        self.gate.set()
        self.num_streams = 1
        self.pipeline_depth = 0
        self.max_microbatch = None
        self.forward_s = 0.0
        self.fail_with = None
        self.lost_with = None
        self.fail_load = False
        self.batches = []
        self.n_begun = 0
        self.to_capture = []
        self.n_encoded_texts = 0
        self.threads = set()

    def load_stack(self, bundle):
        if self.fail_load:
            raise StackMismatchError("made for something else")
        manifest = bundle.manifest
        has_boost = "image.boost" in bundle.tensors
        return PromptStack(
            domain=manifest.domain,
            digest=bundle.digest,
            class_names=tuple(c.name for c in manifest.classes),
            class_texts=tuple(c.text for c in manifest.classes),
            templates=tuple(manifest.templates),
            logit_scale=manifest.logit_scale,
            image_boost=torch.ones(1, 1, 3) if has_boost else None,
            image_adapt=None,
            text_boost=None,
            text_adapt=None,
            text_features=torch.from_numpy(bundle.tensors["text.features"].copy()),
            image=None,
            abstain=manifest.calibration.abstain if manifest.calibration else {},
            image_digest=f"{bundle.tensors['image.boost'].sum():g}" if has_boost else "",
        )

    def synchronize(self):
        if self.lost_with is not None:
            raise self.lost_with

    def boost_stack(self, stack):
        if stack.image_boost is None:
            raise StackMismatchError("no boosting prompts")
        return dataclasses.replace(stack)

    def with_labels(self, stack, labels):
        self.n_encoded_texts += len(labels)
        if any(len(label) > 60 for label in labels):
            raise TextTooLongError("a label is too long")
        return dataclasses.replace(
            stack,
            class_names=tuple(labels),
            class_texts=tuple(labels),
            text_features=colour_features(labels),
            abstain={},
        )

    def encode_images(self, pixels_BCHW, stacks):
        self.threads.add(threading.current_thread().name)
        self.n_begun += 1
        self.gate.wait(20)
        if self.forward_s:
            time.sleep(self.forward_s)
        self.batches.append([stack.domain for stack in stacks])
        if self.fail_with is not None:
            error, self.fail_with = self.fail_with, None
            raise error
        colours = pixels_BCHW.float().mean(dim=(2, 3)) + 1e-3
        return ImageFeatures(colours, torch.nn.functional.normalize(colours, dim=1))

    def capture_steps(self, stack):
        steps, self.to_capture = self.to_capture, []
        return steps

    def padded_batch_size(self, n_rows):
        return n_rows

    def rank(self, pixels_BCHW, stacks, top_ks, *, with_embeddings=False):
        images = self.encode_images(pixels_BCHW, stacks)
        scores = self.score(images, stacks)
        best = [row.topk(min(top_k, len(row))) for row, top_k in zip(scores, top_ks, strict=True)]
        units = images.unit_BE.numpy() if with_embeddings else [None] * len(best)
        return [Ranked(one.indices.tolist(), one.values.tolist(), f) for one, f in zip(best, units, strict=True)]

    def score(self, images, stacks):
        return [
            (stack.logit_scale * row @ stack.text_features.T).softmax(dim=-1)
            for row, stack in zip(images.unit_BE, stacks, strict=True)
        ]


def colour_features(names):
    rows = torch.tensor([COLOURS.get(name.split("-")[0], (1, 1, 1)) for name in names], dtype=torch.float32)
    return torch.nn.functional.normalize(rows, dim=1)


def colour_bundle(domain="paint", names=("red", "green", "blue"), *, seed=0, boost=True, **changes):
    """Bytes of a bundle whose classes are colours; `seed` only makes the content another one."""
    tensors = {"text.features": colour_features(names).numpy()}
    if boost:
        tensors["image.boost"] = np.ones((1, 1, 3), dtype=np.float32)
    values = {
        "format": 1,
        "domain": domain,
        "backbone": BackboneSpec(
            arch="colours", pretrained="none", fingerprint=FINGERPRINT, image_size=16, preprocess=PREPROCESS
        ),
        "classes": [ClassSpec(name=name, text=name) for name in names],
        "templates": ["{}."],
        "logit_scale": 10.0,
        "stack": StackSpec(
            head="static",
            image=GroupsSpec(boost=GroupSpec(depth=1, tokens=1) if boost else None),
            text=GroupsSpec(),
        ),
        "provenance": Provenance(
            method="none", phase="boost", seed=seed, code_version="test", created="2026-01-01T00:00:00Z"
        ),
    }
    return write_bundle(Manifest(**(values | changes)), tensors)


def picture(colour="red", size=(20, 24), kind="PNG", **options):
    """Bytes of an image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, COLOURS.get(colour, colour)).save(file, kind, **options)
    return file.getvalue()
