"""Every knob of the service, in one frozen object.

Built once, in `service/cli.py`, from options and from `CASPL_*` environment variables, and passed down. Nobody else
reads the environment, and a `CASPL_*` variable that no field answers to is refused instead of ignored.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from prompt_store.manifest import is_domain
from service.errors import SettingsError

PREFIX: Final = "CASPL_"
MIB: Final = 1024 * 1024
MOST_GPU_ROWS: Final = 256
CLIENT_VARIABLES: Final = frozenset({"CASPL_URL", "CASPL_API_KEY"})
"""Read by `caspl classify`, and no mistake where a service runs too."""
LINK_NAME: Final = re.compile(
    r"(?:\w+_)?(?:SERVICE_(?:HOST|PORT(?:_\w+)?)|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
LINK_VALUE: Final = re.compile(r"(?:tcp|udp|sctp)://")
"""What Kubernetes tells every container about a service called `caspl` or `caspl-...`: facts, no settings of ours."""


class Settings(BaseSettings):
    """What `caspl serve` runs with; sizes in bytes, pixels or counts, times in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True)

    host: str = Field("127.0.0.1", description="address to listen on; any other than loopback needs keys")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    store: Path = Field(Path("store"), description="directory of the prompt store, created if it is not there")
    keys_file: Path | None = Field(None, description="JSON file of API keys (caspl keys new writes it)")

    web_workers: int = Field(
        0,
        ge=0,
        le=64,
        description="processes for HTTP and decoding in front of the one with the device; 0 does everything in one",
    )

    backbone: str = Field("ViT-B-16", description="open_clip architecture, or demo-student / demo-teacher")
    pretrained: str | None = Field(None, description="open_clip tag, or a local .safetensors or .pt file")
    quick_gelu: bool = Field(False, description="for a local file of OpenAI's weights; their tags need no asking")
    random_weights: int | None = Field(None, ge=0, description="seed for random weights; for tests and benchmarks")
    device: str = Field("auto", pattern=r"auto|cpu|cuda(:\d+)?", description="auto takes CUDA when there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto is what computes fastest here: on the CPU float32 and bfloat16 are timed at start"
    )
    n_torch_threads: int = Field(
        0, ge=0, description="cores that the model computes on; 0 takes all, within a container's quota"
    )

    max_batch_rows: int = Field(
        32,
        ge=1,
        le=1024,
        description="most images on the device at once; on a GPU, unless it is set, as many as it has multiprocessors, "
        "rounded to a power of two, 256 at most",
    )
    max_text_rows: int = Field(
        1024, ge=1, le=65_536, description="most texts encoded at once for domains whose text depends on the image"
    )
    max_conditional_classes: int = Field(
        1000, ge=1, le=10_000, description="most classes of such a domain; each costs a text forward per image"
    )
    bank_slots: int = Field(
        256, ge=1, le=65_536, description="domains in the device's memory at once; the others wait in host memory"
    )
    resident_domains: str | None = Field(
        None,
        description="domains, separated by commas, that never leave the device's memory; half of bank_slots at most",
    )
    max_waiting_rows: int = Field(
        128,
        ge=1,
        description="most images of one domain that may wait for the device, of all together half as many again; "
        "beyond it 429; on a GPU, unless it is set, at least four batches",
    )
    default_timeout_s: float = Field(5.0, gt=0, description="deadline of a request that names none")
    max_timeout_s: float = Field(30.0, gt=0, description="longest deadline a request may ask for")
    stuck_after_s: float = Field(
        60.0,
        gt=0,
        description="a single forward on the device that takes longer than this counts as hung, and the process ends "
        "for its supervisor to replace it",
    )

    max_image_bytes: int = Field(10 * MIB, ge=1, description="most bytes of one image file")
    max_request_bytes: int = Field(32 * MIB, ge=1, description="most bytes of one classify request")
    max_bundle_bytes: int = Field(64 * MIB, ge=1, description="most bytes of one uploaded bundle")
    max_body_s: float = Field(30.0, gt=0, description="a body that takes longer to arrive is refused")
    max_open_requests: int = Field(
        256,
        ge=1,
        description="most classify requests under way in one process; beyond it 429, before the body is read; on a "
        "GPU, unless it is set, at least eight batches",
    )
    max_images: int = Field(16, ge=1, le=256, description="most images in one request")
    max_image_pixels: int = Field(25_000_000, ge=1, description="most pixels of one image, read from its header")
    max_image_side_px: int = Field(16_384, ge=1, description="longest side of one image")
    max_image_aspect: float = Field(20.0, ge=1, description="longest side over shortest side")
    max_image_scans: int = Field(100, ge=1, description="most scans of a progressive JPEG")
    preprocess: Literal["exact", "fast", "gpu"] = Field(
        "exact",
        description="exact: open_clip's transform to the bit; fast: nearly, and sooner; gpu: JPEGs decoded on the GPU",
    )
    n_decode_threads: int = Field(
        0,
        ge=0,
        le=64,
        description="threads that decode images; 0 takes one per core, 8 at most; 64 with preprocess gpu",
    )
    max_decoding_images: int = Field(64, ge=1, description="most images decoding or waiting for it; beyond it 429")

    max_top_k: int = Field(100, ge=1, description="largest top_k")
    max_labels: int = Field(256, ge=1, le=10_000, description="most labels of one open-vocabulary request")
    max_label_chars: int = Field(128, ge=1, description="longest label")
    max_label_sets: int = Field(64, ge=1, description="label sets and boost-only stacks whose text features are kept")
    max_old_stacks: int = Field(
        8, ge=1, description="versions kept loaded that are not live: replaced lately, or asked for"
    )
    max_waiting_stacks: int = Field(
        16,
        ge=1,
        description="label sets, boost-only stacks and such versions that wait to be made ready; beyond it 429",
    )

    trials_s: float = Field(
        5.0,
        ge=0,
        description="time at the start for trying out what is live; with more domains the rest is tried out while it "
        "serves",
    )
    calibrate_s: float = Field(
        1.0, ge=0, description="time at the start for measuring how long batches take; 0 learns it from requests"
    )
    domain_metrics: bool = Field(
        True,
        description="label metrics with the domain's name; with thousands of domains say no, and all count as one",
    )
    store_poll_s: float = Field(1.0, ge=0, description="how often to look for changes by other processes; 0 never")
    drain_delay_s: float = Field(5.0, ge=0, description="after SIGTERM, serve this long while /readyz says 503")
    drain_timeout_s: float = Field(20.0, gt=0, description="then wait this long for the last answers")
    log_format: Literal["text", "json"] = Field("text", description="how log lines look on standard error")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line to log")

    @field_validator("port", mode="before")
    @classmethod
    def _no_service_link(cls, value: object) -> object:
        """CASPL_PORT=tcp://10.0.0.7:8000 tells of a Kubernetes service called `caspl`, not of this process."""
        return cls.model_fields["port"].default if LINK_VALUE.match(str(value)) else value

    @field_validator("resident_domains")
    @classmethod
    def _are_domains(cls, value: str | None) -> str | None:
        for name in _listed(value):
            if not is_domain(name):
                raise ValueError(f"{name!r} is no domain name; separate names by commas")
        return value

    @model_validator(mode="after")
    def _limits_agree(self) -> Settings:
        if len(self.kept_domains) > self.kept_slots:
            raise ValueError(
                f"resident_domains names {len(self.kept_domains)} domains, more than half of bank_slots; raise that"
            )
        if self.preprocess == "gpu" and (self.web_workers or self.device == "cpu"):
            raise ValueError("preprocess gpu decodes where the model runs: it needs a CUDA device and no web_workers")
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError("default_timeout_s must not be larger than max_timeout_s")
        for name in ("max_waiting_rows", "max_decoding_images"):
            if self.max_images > getattr(self, name):
                raise ValueError(f"max_images must not be larger than {name}: a full request would always be 429")
        return self

    def for_gpu(self, n_multiprocessors: int) -> Settings:
        """The same with limits for a GPU of so many multiprocessors, where none were asked for.

        A batch keeps all of them busy through several waves of tiles when it has about as many images of ViT-B/16.
        """
        n_rows = self.max_batch_rows
        if "max_batch_rows" not in self.model_fields_set:
            n_rows = max(n_rows, min(2 ** round(math.log2(n_multiprocessors)), MOST_GPU_ROWS))
        fitting = {"max_batch_rows": n_rows, "max_waiting_rows": 4 * n_rows, "max_open_requests": 8 * n_rows}
        unasked = fitting.keys() - self.model_fields_set
        return self.model_copy(update={name: max(getattr(self, name), fitting[name]) for name in unasked})

    @property
    def kept_domains(self) -> frozenset[str]:
        """The names in `resident_domains`."""
        return frozenset(_listed(self.resident_domains))

    @property
    def kept_slots(self) -> int:
        """Slots of the bank that they may take."""
        return self.bank_slots // 2 if self.kept_domains else 0

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def body_limit(self, path: str) -> int:
        """Most bytes the body of a request to `path` may have."""
        if path.startswith("/classify"):
            return self.max_request_bytes
        if path.startswith("/domains/") and path.endswith("/versions"):
            return self.max_bundle_bytes
        return 64 * 1024

    def timeout_s(self, timeout_ms: int | None) -> float | None:
        """Seconds of a request that asks for so many milliseconds, or for none; None if that is too many."""
        timeout_s = self.default_timeout_s if timeout_ms is None else timeout_ms / 1000
        return timeout_s if timeout_s <= self.max_timeout_s else None

    def limits(self) -> dict[str, int | float]:
        """The limits a caller may run into, for `GET /info`."""
        return {name: value for name, value in self.model_dump().items() if name.startswith("max_")}


def refuse_unknown(environment: Mapping[str, str]) -> None:
    """Refuse variables that look like settings and are none, so that a typing error cannot pass for a setting.

    What Kubernetes sets for a service whose name begins with `caspl` is passed over.

    Raises:
        SettingsError: names every unknown variable.
    """
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    unknown = sorted(
        name
        for name, value in environment.items()
        if name.upper().startswith(PREFIX) and name.upper() not in known and not _is_service_link(name, value)
    )
    if unknown:
        raise SettingsError(
            f"Unknown environment variables: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.",
            code="unknown_variable",
        )


def load_settings(**given: object) -> Settings:
    """Build the settings from options (those that are not None) and the environment.

    Raises:
        SettingsError: an unknown variable or a value out of its range.
    """
    refuse_unknown(os.environ)
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**chosen)  # type: ignore[arg-type]
    except ValueError as error:
        raise SettingsError(f"Invalid settings: {error}") from error


def _listed(value: str | None) -> list[str]:
    return [name for part in (value or "").split(",") if (name := part.strip())]


def _is_service_link(name: str, value: str) -> bool:
    rest = name.upper().removeprefix(PREFIX)
    return bool(LINK_NAME.fullmatch(rest) or (rest.endswith("_PORT") and LINK_VALUE.match(value)))
