"""Classification in this process, without a server."""

from collections.abc import Sequence
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from caspl.errors import ImageError, InvalidRequestError, NotFoundError
from caspl.images import ImageInput, ImagesInput, as_list, open_image, undecodable
from caspl.results import Classification, Prediction
from prompt_store.bundle import read_bundle
from prompt_store.class_names import normalize_labels
from prompt_store.errors import BundleInvalidError
from prompt_store.manifest import DEFAULT_TEMPLATE
from prompted_clip.backbone import load_backbone
from prompted_clip.device_errors import resolve_device
from prompted_clip.errors import StackMismatchError
from prompted_clip.model import PromptedClip
from prompted_clip.preprocess import to_pixels, upright_rgb
from prompted_clip.stack import PromptStack

LABEL_SETS: Final = 32
"""Label sets whose text features are cached."""


class Classifier:
    """One CLIP backbone with the prompts of any number of domains.

    Args:
        backbone: open_clip model name, such as `ViT-B-16`, or `demo-student`, which comes with the package.
        pretrained: open_clip tag (downloaded once) or a local weights file; not needed for `demo-student`.
        quick_gelu: use QuickGELU, for a local file of OpenAI's weights.
        preprocess_of: the open_clip tag whose preprocessing and activation a local file needs.
        interpolate_positions: resize a local file's positional embeddings of another image grid or text length.
        bundles: bundle files, or their bytes, one per domain.
        device: `auto` (CUDA if available), `cpu` or `cuda:N`.
        dtype: type of the weights: `float32`, `bfloat16` or `float16`.
        batch_size: images per forward pass.

    Raises:
        prompted_clip.errors.DeviceError: CUDA is not available, or torch has no code for the GPU.
        prompted_clip.errors.WeightsError: unknown backbone or no weights.
        prompted_clip.errors.StackMismatchError: a bundle was made for another backbone.
        prompt_store.errors.BundleInvalidError: a file is not a valid bundle.
        OSError: a bundle file cannot be read.
    """

    def __init__(
        self,
        backbone: str = "ViT-B-16",
        *,
        pretrained: str | None = None,
        quick_gelu: bool = False,
        preprocess_of: str | None = None,
        interpolate_positions: bool = False,
        bundles: Sequence[str | PathLike[str] | bytes] = (),
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        self._model = PromptedClip(
            load_backbone(
                backbone,
                pretrained=pretrained,
                quick_gelu=quick_gelu,
                preprocess_of=preprocess_of,
                interpolate_positions=interpolate_positions,
                device=resolve_device(device),
                dtype=getattr(torch, dtype),
            )
        )
        self._batch_size = batch_size
        self._stacks: dict[str, PromptStack] = {}
        self._with_labels = lru_cache(LABEL_SETS)(self._model.with_labels)
        self._plain = lru_cache(LABEL_SETS)(lambda labels: self._model.plain_stack("", labels, [DEFAULT_TEMPLATE]))
        for bundle in bundles:
            self.load(bundle)

    def load(self, bundle: str | PathLike[str] | bytes) -> str:
        """Load a bundle, replacing the one loaded earlier for the same domain.

        Returns:
            The bundle's domain.

        Raises:
            StackMismatchError, BundleInvalidError, OSError: see `Classifier`.
        """
        data = bundle if isinstance(bundle, bytes) else Path(bundle).read_bytes()
        stack = self._model.load_stack(read_bundle(data))
        self._stacks[stack.domain] = stack
        return stack.domain

    @property
    def domains(self) -> dict[str, tuple[str, ...]]:
        """The classes of each loaded domain."""
        return {domain: stack.class_names for domain, stack in self._stacks.items()}

    def classify(
        self,
        images: ImagesInput,
        domain: str | Sequence[str] | None = None,
        *,
        top_k: int = 5,
        labels: Sequence[str] | None = None,
        abstain: float | None = None,
        embedding: bool = False,
    ) -> list[Classification]:
        """Classify images among the classes of their domains.

        p(c | x) = softmax_c(s · <f(x), g_c>) with unit-norm features f and g (CLIP, arXiv 2103.00020, figure 3).

        Args:
            images: one or several: file paths, encoded bytes, PIL images, or uint8 arrays [H, W, 3] (RGB) or [H, W].
            domain: one for all images, or one per image. Optional if only one domain is loaded, or if none is loaded
                and the plain backbone classifies among `labels`.
            top_k: maximum number of classes per image.
            labels: open vocabulary: classify among these instead of the bundle's classes; a list, or one string with
                commas.
            abstain: abstention rate, such as 0.05: images that are classified less reliably have `abstained` set and
                no label. The bundles need a threshold for it, see `caspl fit`; without `labels` only.
            embedding: return image embeddings.

        Returns:
            One result per image, in order; an image that cannot be decoded has `error` set and does not affect others.

        Raises:
            NotFoundError: no bundle of such a domain is loaded.
            InvalidRequestError: a label is empty, unprintable, too long or a duplicate; no threshold for `abstain`.
            OSError: a file cannot be read.
            StackMismatchError, TextTooLongError: the domain's prompts cannot score these labels.
        """
        all_images = as_list(images)
        stacks = self._stacks_of(len(all_images), domain, _names(labels or ()))
        thresholds = [0.0] * len(stacks) if abstain is None else _thresholds(stacks, abstain, has_labels=bool(labels))
        results: list[Classification] = []
        for start in range(0, len(all_images), self._batch_size):
            batch = slice(start, start + self._batch_size)
            results += self._classify_batch(all_images[batch], stacks[batch], thresholds[batch], top_k, embedding)
        return results

    def _stacks_of(
        self, n_images: int, domain: str | Sequence[str] | None, labels: tuple[str, ...]
    ) -> list[PromptStack]:
        if domain is None and not self._stacks and labels:
            return [self._plain(labels)] * n_images
        if domain is None and len(self._stacks) == 1:
            (domain,) = self._stacks
        domains = [domain] * n_images if isinstance(domain, str) else list(domain or ())
        if len(domains) != n_images:
            raise ValueError(f"Pass one domain, or one per image: {len(domains)} domains for {n_images} images.")
        if unknown := sorted(set(domains) - self._stacks.keys()):
            detail = f"{', '.join(unknown)}; loaded: {', '.join(self._stacks) or 'none'}."
            raise NotFoundError("Domain not loaded", detail, code="domain_not_found")
        stacks = [self._stacks[name] for name in domains]
        return [self._with_labels(stack, labels) for stack in stacks] if labels else stacks

    def _classify_batch(
        self,
        images: Sequence[ImageInput],
        stacks: Sequence[PromptStack],
        thresholds: Sequence[float],
        top_k: int,
        with_embeddings: bool,
    ) -> list[Classification]:
        results: dict[int, Classification] = {}
        decoded: dict[int, tuple[NDArray[np.uint8], tuple[str, ...]]] = {}
        for row, image in enumerate(images):
            try:
                decoded[row] = self._decode(image)
            except ImageError as error:
                results[row] = Classification(stacks[row].domain or None, digest=stacks[row].digest, error=error)
        for lane in {stacks[row].lane for row in decoded}:
            rows = [row for row in decoded if stacks[row].lane == lane]
            pixels_BCHW = torch.from_numpy(np.stack([decoded[row][0] for row in rows]))
            of_lane = [stacks[row] for row in rows]
            ranked = self._model.rank(pixels_BCHW, of_lane, [top_k] * len(rows), with_embeddings=with_embeddings)
            for row, stack, (class_ids, probabilities, embedding_E) in zip(rows, of_lane, ranked, strict=True):
                names = stack.class_names
                results[row] = Classification(
                    stack.domain or None,
                    digest=stack.digest,
                    predictions=tuple(
                        Prediction(names[i], i, p) for i, p in zip(class_ids, probabilities, strict=True)
                    ),
                    notes=decoded[row][1],
                    abstained=probabilities[0] < thresholds[row],
                    embedding=embedding_E,
                )
        return [results[row] for row in range(len(images))]

    def _decode(self, image: ImageInput) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        backbone = self._model.backbone
        opened = open_image(image)
        notes = ("cmyk",) if opened.mode == "CMYK" else ()
        try:
            return to_pixels(upright_rgb(opened), backbone.image_size, backbone.preprocess), notes
        except Exception as error:  # Pillow raises a dozen kinds for damaged files
            raise undecodable() from error


def _thresholds(stacks: Sequence[PromptStack], abstain: float, *, has_labels: bool) -> list[float]:
    """The abstention threshold of each image's stack."""
    title, code = "No such abstention threshold", "abstain_unsupported"
    if has_labels:
        raise InvalidRequestError(title, "abstain is calibrated for the bundle's own classes; omit labels.", code=code)
    try:
        return [stack.abstain_below(abstain) for stack in stacks]
    except StackMismatchError as error:
        raise InvalidRequestError(title, str(error), code=code) from error


def _names(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels as class names; a string is split at commas, as the server does."""
    try:
        return normalize_labels(labels.split(",") if isinstance(labels, str) else labels)
    except BundleInvalidError as error:
        raise InvalidRequestError("Invalid labels", str(error), code="label_invalid") from error
