"""Loads the model that the settings name: device, dtype, image tower, threads."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import torch

from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.device_errors import resolve_device
from prompted_clip.errors import DeviceError
from prompted_clip.fastest_backend import fastest_backend, is_heavy, is_packed_faster
from prompted_clip.fused_tower import FusedImageTower
from prompted_clip.graphs import FIXED_IN, GraphedTower, can_capture
from prompted_clip.model import PromptedClip
from prompted_clip.openvino_tower import OpenVinoTower, OpenVinoType
from prompted_clip.vision import ImageTower
from service.errors import SettingsError
from service.process import usable_cores
from service.settings import Settings

logger = logging.getLogger(__name__)


def load_model(settings: Settings) -> PromptedClip:
    """Load the backbone and everything it needs to serve on this machine.

    Raises:
        WeightsError: unknown architecture, or weights that cannot be loaded.
        SettingsError: CUDA was requested and is not available, or torch has no code for the GPU.
    """
    torch.set_num_threads(settings.n_torch_threads or num_threads(settings.backbone, settings.device))
    # Every thread that runs torch gets an OpenMP pool of its own until it ends, and the pools spin only while they have
    # no more threads than there are cores together: only the device's threads may keep one.
    with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
        return thread.submit(_load_model, settings).result()


def _load_model(settings: Settings) -> PromptedClip:
    device = select_device(settings)
    backend, dtype = select_backend(settings, device)
    backbone = load_backbone(
        settings.backbone,
        pretrained=settings.pretrained,
        quick_gelu=settings.quick_gelu,
        preprocess_of=settings.preprocess_of,
        interpolate_positions=settings.interpolate_positions,
        random_seed=settings.random_weights,
        device=device,
        dtype=torch.float32 if backend == "openvino" else getattr(torch, dtype),
    )
    streams = num_streams(backbone, settings)
    return PromptedClip(
        backbone,
        image_tower=openvino_tower(backbone, dtype, streams)
        if backend == "openvino"
        else image_tower(backbone, settings),
        max_text_rows=max(1, settings.max_text_rows // streams),
        max_conditional_classes=settings.max_conditional_classes,
        bank_slots=settings.bank_slots,
        num_streams=streams,
    )


def select_device(settings: Settings) -> str:
    """The device to run on; `auto` takes CUDA if it is available.

    Raises:
        SettingsError: CUDA was requested and is not available, or torch has no code for the GPU.
    """
    if settings.needs_openvino:
        return "cpu"
    try:
        return resolve_device(settings.device)
    except DeviceError as error:
        raise SettingsError(str(error)) from error


def select_backend(settings: Settings, device: str) -> tuple[str, str]:
    """The backend and dtype of the image tower; `auto` takes the fastest ones on this device, never int8.

    Raises:
        BackendError: OpenVINO was requested and is not installed.
    """
    if settings.dtype != "auto":
        return "openvino" if settings.needs_openvino else "torch", settings.dtype
    return fastest_backend(settings.backbone, device, settings.backend)


def with_gpu_limits(settings: Settings) -> Settings:
    """The settings, with defaults that suit the GPU if there is one.

    Raises:
        SettingsError: CUDA was requested and is not available.
    """
    device = select_device(settings)
    if not device.startswith("cuda"):
        return settings
    return settings.for_gpu(torch.cuda.get_device_properties(device).multi_processor_count)


def image_tower(backbone: Backbone, settings: Settings) -> ImageTower:
    """The fastest image tower for this device."""
    tower = FusedImageTower(backbone, packed=is_packed_faster(backbone.arch, backbone.device, backbone.dtype))
    if backbone.device.type == "cuda":
        if not can_capture():
            logger.warning("graph.unavailable", extra={"torch": torch.__version__, "needed": FIXED_IN})
            return tower
        return GraphedTower(tower, backbone, max_rows=settings.max_batch_rows)
    return tower


def openvino_tower(backbone: Backbone, dtype: str, n_streams: int) -> ImageTower:
    """The image tower in OpenVINO on torch's number of threads."""
    tower = OpenVinoTower(
        backbone, dtype=cast("OpenVinoType", dtype), n_threads=torch.get_num_threads(), n_streams=n_streams
    )
    if dtype == "int8":
        logger.warning("backend.int8", extra={"arch": backbone.arch})
    return tower


def num_threads(arch: str, device: str) -> int:
    """Threads of a forward: all cores, or one for a small backbone on a CPU (decision 0019)."""
    is_on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if is_on_cpu and not is_heavy(arch):
        return 1
    return min(torch.get_num_threads(), usable_cores())


def num_streams(backbone: Backbone, settings: Settings) -> int:
    """Concurrent batches: one per core for a large backbone on a CPU (decision 0012), but no batch under two images."""
    if backbone.device.type != "cpu" or not is_heavy(backbone.arch):
        return 1
    return max(1, min(torch.get_num_threads(), settings.max_batch_rows // 2))
