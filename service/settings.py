"""All service settings, as one frozen object.

`service/configuration/environment.py` builds it from command-line options and `CASPL_*` environment variables; no other
module reads the environment.
"""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    IPvAnyNetwork,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from prompt_store.class_names import MAX_NAME_CHARS
from prompt_store.manifest import is_domain

PREFIX: Final = "CASPL_"
MIB: Final = 1024 * 1024
MOST_GPU_ROWS: Final = 256
LINK_VALUE: Final = re.compile(r"(?:tcp|udp|sctp)://")
"""Kubernetes sets variables with such values in every container for a service named `caspl`; they are ignored."""

PATH: Final = r"^(/[A-Za-z0-9_.~-]+)*/?$"
ORIGIN: Final = r"^(\*|https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d+)?)$"


def _listed(value: object) -> object:
    """Split a comma-separated text; any other value is returned unchanged."""
    if not isinstance(value, str):
        return value
    return [name for part in value.split(",") if (name := part.strip())]


def _domain(name: str) -> str:
    if not is_domain(name):
        raise ValueError(f"{name!r} is not a valid domain name; separate names with commas")
    return name


StoreAddress = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
T = TypeVar("T")
CommaSeparated = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """Settings of `caspl serve`; sizes in bytes, pixels or counts, times in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True)

    host: str = Field("127.0.0.1", description="address to listen on; any address but loopback requires keys")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free port")
    store: StoreAddress = Field(
        "store", description="directory of the bundle store, or s3://BUCKET/PREFIX; created if missing"
    )
    store_cache: Path | None = Field(
        None,
        description="directory for local copies of stores in buckets and for their examples; default: caspl/stores in "
        "the user's cache directory",
    )
    keys_file: Path | None = Field(None, description="JSON file with API keys, created by `caspl keys new`")
    require_signature: CommaSeparated[Path] = Field((), description="public keys (PEM files) of the bundles to serve")
    follow: CommaSeparated[str] = Field(
        (), description="comma-separated addresses, [DOMAIN=]oci://…, s3://… or hf://…, whose bundles go live here"
    )
    follow_every_s: float = Field(30.0, ge=0.1, description="interval between checks of each followed address")
    follow_plain_http: bool = Field(
        False, description="follow addresses on other hosts by HTTP without encryption, too"
    )
    signing_key: Path | None = Field(
        None,
        description="Ed25519 private key (PEM file) that signs the service's own fits and new domains; one of "
        "require_signature's, if that is set",
    )
    key_requests_per_s: float | None = Field(
        None, gt=0, description="default rate limit of a key in requests per second; beyond it 429"
    )
    key_bytes_per_s: float | None = Field(
        None, gt=0, description="default rate limit of a key in bytes of request bodies per second; beyond it 429"
    )
    max_failed_keys_per_minute: int = Field(
        10, ge=1, description="maximum number of wrong keys per client address and minute; beyond it 429"
    )
    root_path: Annotated[str, AfterValidator(lambda path: path.rstrip("/"))] = Field(
        "/", pattern=PATH, description="path prefix under which a reverse proxy serves the API, such as /caspl"
    )
    forwarded_allow_ips: CommaSeparated[IPvAnyNetwork] = Field(
        (),
        description="comma-separated addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto "
        "headers are trusted",
    )
    cors_origins: CommaSeparated[Annotated[str, Field(pattern=ORIGIN)]] = Field(
        (), description="comma-separated origins whose web pages may call the API, such as https://app.example, or *"
    )
    api_docs: bool = Field(True, description="serve the API documentation: /docs and /openapi.json")
    web_workers: int = Field(
        0,
        ge=0,
        le=64,
        description="HTTP and decoding processes in front of the device process; 0 runs everything in one process",
    )

    backbone: str = Field(
        "ViT-B-16",
        description="open_clip architecture, demo-student, or a folder with weights: local-dir:FOLDER, hf-hub:ORG/NAME",
    )
    pretrained: str | None = Field(None, description="open_clip tag, or path of a .safetensors or .pt file")
    quick_gelu: bool = Field(
        False, description="use QuickGELU with a local weights file; tags and OpenAI's own .pt files need no option"
    )
    preprocess_of: str | None = Field(
        None, description="open_clip tag whose preprocessing and activation a local weights file needs"
    )
    interpolate_positions: bool = Field(
        False, description="resize a weights file's positional embeddings of another image grid or text length"
    )
    random_weights: int | None = Field(None, ge=0, description="seed for random weights; for tests and benchmarks")
    device: str = Field("auto", pattern=r"auto|cpu|cuda(:\d+)?", description="auto uses CUDA if available")
    backend: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="library of the image tower; openvino: on the CPU, requires the extra openvino; auto: with that "
        "extra the faster one, timed at startup",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="auto picks the fastest float type; on the CPU it times float32 and bfloat16 at startup; int8 "
        "requires OpenVINO and changes embeddings slightly",
    )
    n_torch_threads: int = Field(
        0, ge=0, description="CPU cores for the model; 0 uses all cores within the container's quota"
    )

    max_batch_rows: int = Field(
        32,
        ge=1,
        le=1024,
        description="maximum batch size; default on a GPU: its number of multiprocessors, rounded to a power "
        "of two, at most 256",
    )
    max_text_rows: int = Field(
        1024, ge=1, le=65_536, description="maximum number of texts encoded at once by a conditional head"
    )
    max_conditional_classes: int = Field(
        1000,
        ge=1,
        le=10_000,
        description="maximum number of classes of a domain with a conditional head; each costs a text forward "
        "per image",
    )
    bank_slots: int = Field(
        256, ge=1, le=65_536, description="domains resident in device memory; the rest stay in host memory"
    )
    resident_domains: CommaSeparated[Annotated[str, AfterValidator(_domain)]] = Field(
        (),
        description="comma-separated domains that are never evicted from device memory; at most half of bank_slots",
    )
    max_queued_rows: int = Field(
        128,
        ge=1,
        description="maximum number of queued images per domain, and 1.5 times that in total; beyond it 429; "
        "default on a GPU: at least four batches",
    )
    default_timeout_s: float = Field(5.0, gt=0, description="deadline of a request without timeout_ms")
    max_timeout_s: float = Field(30.0, gt=0, description="largest timeout a request may set")
    stuck_after_s: float = Field(
        30.0,
        gt=0,
        description="a forward or an event loop that is stuck for longer counts as hung; the process exits so that its "
        "supervisor restarts it",
    )

    max_image_bytes: int = Field(10 * MIB, ge=1, description="maximum size of one image file")
    max_request_bytes: int = Field(32 * MIB, ge=1, description="maximum body size of a classify request")
    max_bundle_bytes: int = Field(64 * MIB, ge=1, description="maximum size of an uploaded bundle")
    max_body_s: float = Field(30.0, gt=0, description="maximum time to receive a request body")
    min_body_rate: int = Field(
        16 * 1024, ge=0, description="minimum rate of a request body in bytes per second over 5 s; below it 408"
    )
    max_admitted_bytes: int = Field(
        256 * MIB,
        ge=1,
        description="maximum size of all request bodies in memory, uploads included, per process, shared between "
        "tenants; beyond it 503",
    )
    max_open_requests: int = Field(
        128,
        ge=1,
        description="maximum number of open classify requests (body received, not yet answered) per domain and "
        "process, at most max_queued_rows, and 1.5 times that in total; beyond it 429; on a GPU at least four batches",
    )
    max_images: int = Field(16, ge=1, le=256, description="maximum number of images per request")
    max_image_pixels: int = Field(
        25_000_000, ge=1, description="maximum number of pixels of an image, checked before decoding"
    )
    max_image_side_px: int = Field(16_384, ge=1, description="maximum width or height of an image")
    max_image_aspect: float = Field(20.0, ge=1, description="maximum ratio of the longer to the shorter side")
    max_image_scans: int = Field(100, ge=1, description="maximum number of scans of a JPEG; fewer for large ones")
    preprocess: Literal["exact", "fast", "gpu"] = Field(
        "exact",
        description="exact: bit-identical to open_clip's transform; fast: nearly identical and faster; gpu: "
        "decode JPEGs on the GPU",
    )
    n_decode_threads: int = Field(
        0, ge=0, le=64, description="image decoding threads; 0 uses one per core, at most 8, or 64 with preprocess gpu"
    )
    max_decoding_images: int = Field(
        64,
        ge=1,
        description="maximum number of images per tenant that are decoded or wait for it, and 1.5 times that in total; "
        "beyond it 429",
    )
    max_decoding_bytes: int = Field(
        0,
        ge=0,
        description="maximum memory of large images that are decoded at the same time; the others wait; 0 allows "
        "160 MiB per decoding thread, at most 1,280 MiB",
    )

    max_top_k: int = Field(100, ge=1, description="maximum top_k")
    max_labels: int = Field(256, ge=1, le=10_000, description="maximum number of labels of an open-vocabulary request")
    max_label_chars: int = Field(128, ge=1, le=MAX_NAME_CHARS, description="maximum length of a label")
    max_label_sets: int = Field(64, ge=1, description="size of the LRU cache of label sets and boost-only stacks")
    max_old_stacks: int = Field(
        8,
        ge=1,
        description="size of the LRU cache of versions that are not live: replaced, uploaded or requested by number",
    )
    max_waiting_stacks: int = Field(
        16,
        ge=1,
        description="maximum number of waiting loads: of label sets and boost-only stacks, and separately of versions "
        "and of fits; beyond it 429",
    )

    max_examples: int = Field(20_000, ge=1, description="maximum number of examples per domain; beyond it 409")
    max_example_bytes: int = Field(
        2048 * MIB,
        ge=1,
        description="maximum size of the thumbnails, pictures and features of all examples, half of it for one domain; "
        "beyond it 409",
    )
    keep_examples: Literal["thumbnails", "pictures"] = Field(
        "thumbnails",
        description="what to keep of an example besides its features; pictures: also the uploaded file, so that "
        "features can be computed again for other image prompts",
    )
    keep_uncertain: int = Field(
        0,
        ge=0,
        le=10_000,
        description="keep images of classify requests on disk, as unlabelled examples: this many per domain, the ones "
        "that the domain's live version is least certain about; 0 keeps none",
    )

    warmup_s: float = Field(
        5.0,
        ge=0,
        description="time for testing live versions on the device at startup; the rest is tested while serving",
    )
    domain_metrics: bool = Field(
        True, description="add the domain as a label to metrics; turn it off with thousands of domains"
    )
    store_poll_s: float = Field(
        1.0, ge=0, description="interval between checks for changes by other processes; 0 disables them"
    )
    drain_delay_s: float = Field(
        5.0, ge=0, description="after SIGTERM, keep serving this long while /readyz returns 503"
    )
    drain_timeout_s: float = Field(20.0, gt=0, description="then wait this long for open requests to finish")
    traces: bool = Field(
        False,
        description="export OpenTelemetry traces as the OTEL_* variables configure; requires the extra traces",
    )
    log_format: Literal["text", "json"] = Field("text", description="format of log lines on stderr")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="minimum level to log")

    @field_validator("port", mode="before")
    @classmethod
    def _no_service_link(cls, value: object) -> object:
        """Ignore CASPL_PORT=tcp://10.0.0.7:8000, which Kubernetes sets for a service named `caspl`."""
        return cls.model_fields["port"].default if LINK_VALUE.match(str(value)) else value

    @model_validator(mode="after")
    def _limits_agree(self) -> Settings:
        if len(self.kept_domains) > self.kept_slots:
            raise ValueError(
                f"resident_domains has {len(self.kept_domains)} domains, more than half of bank_slots; raise bank_slots"
            )
        if self.preprocess == "gpu" and (self.web_workers or self.device == "cpu"):
            raise ValueError("preprocess gpu requires a CUDA device and web_workers=0")
        self._check_backend()
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError("default_timeout_s must not exceed max_timeout_s")
        for name in ("max_queued_rows", "max_decoding_images"):
            if self.max_images > getattr(self, name):
                raise ValueError(f"max_images must not exceed {name}: a full request would always get 429")
        for name in ("max_request_bytes", "max_bundle_bytes"):
            if 3 * getattr(self, name) > 2 * self.max_admitted_bytes:
                raise ValueError(
                    f"{name} must not exceed two thirds of max_admitted_bytes: such a body would always get 503"
                )
        return self

    def _check_backend(self) -> None:
        if self.dtype == "int8" and self.backend == "torch":
            raise ValueError("dtype int8 requires backend openvino")
        if self.dtype == "float16" and self.backend == "openvino":
            raise ValueError("backend openvino supports dtype float32, bfloat16 and int8, not float16")
        if self.needs_openvino and self.device.startswith("cuda"):
            raise ValueError("backend openvino and dtype int8 run on the CPU; use device cpu or auto")

    def for_gpu(self, n_multiprocessors: int) -> Settings:
        """Return the settings with defaults for a GPU with `n_multiprocessors`; explicit values are kept.

        A batch of about that many ViT-B/16 images occupies all multiprocessors for several waves of tiles.
        """
        n_rows = self.max_batch_rows
        if "max_batch_rows" not in self.model_fields_set:
            n_rows = max(n_rows, min(2 ** round(math.log2(n_multiprocessors)), MOST_GPU_ROWS))
        fitting = {"max_batch_rows": n_rows, "max_queued_rows": 4 * n_rows, "max_open_requests": 4 * n_rows}
        defaulted = fitting.keys() - self.model_fields_set
        return self.model_copy(update={name: max(getattr(self, name), fitting[name]) for name in defaulted})

    @property
    def needs_openvino(self) -> bool:
        """Whether `backend` or `dtype` requires OpenVINO, which runs on the CPU."""
        return self.backend == "openvino" or self.dtype == "int8"

    @property
    def kept_domains(self) -> frozenset[str]:
        """The names in `resident_domains`."""
        return frozenset(self.resident_domains)

    @property
    def kept_slots(self) -> int:
        """Maximum number of bank slots for resident domains."""
        return self.bank_slots // 2 if self.kept_domains else 0

    @property
    def is_loopback(self) -> bool:
        """Whether the service listens on a loopback address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def limits(self) -> dict[str, int | float]:
        """All `max_*` settings, for `GET /info`."""
        return {name: value for name, value in self.model_dump().items() if name.startswith("max_")}
