"""The JSON bodies of requests and answers; what a client may rely on.

Times are milliseconds, probabilities 0 to 1. Knows no domain logic.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Asked(BaseModel):
    """A request body: unknown fields are refused, so that a typing error is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Base64Image(_Asked):
    """One image inside JSON."""

    b64: str = Field(description="the file's bytes in base64; costs a third more than sending them raw")


class ClassifyBody(_Asked):
    """The JSON form of `POST /classify/{domain}`."""

    images: list[Base64Image] = Field(min_length=1)


class MixedImage(Base64Image):
    """One image inside JSON, and who is to classify it."""

    domain: str


class MixedBody(_Asked):
    """The JSON form of `POST /classify`."""

    images: list[MixedImage] = Field(min_length=1)


class LiveBody(_Asked):
    """The body of `PUT /domains/{domain}/live`."""

    version: int = Field(ge=1)


class PredictionOut(BaseModel):
    """One class and how probable it is."""

    label: str
    class_id: int = Field(description="position in the bundle's classes, or in `labels` if those were given")
    probability: float


class ResultOut(BaseModel):
    """What became of one image: predictions, or an error of its own."""

    index: int
    name: str | None = Field(None, description="file name of a multipart image")
    predictions: list[PredictionOut] = []
    notes: list[str] = Field([], description="what was done to the image, such as `cmyk` (converted)")
    error: dict[str, Any] | None = Field(None, description="a problem (RFC 9457) when this image failed")


class TimingOut(BaseModel):
    """Where the time went, in milliseconds; the slowest image counts for each stage."""

    decode: float
    queue: float
    device: float
    total: float


class ClassifyOut(BaseModel):
    """Answer of `POST /classify/{domain}`."""

    request_id: str
    domain: str
    version: int
    digest: str
    stack: str = Field(description="`cascade` or `boost`")
    results: list[ResultOut]
    timing_ms: TimingOut


class MixedResultOut(ResultOut):
    """What became of one image, and which version of its domain answered."""

    domain: str | None = Field(description="null where what was sent cannot be the name of one")
    version: int | None = Field(None, description="null where none could answer; `error` says why")
    digest: str | None = None


class MixedOut(BaseModel):
    """Answer of `POST /classify`."""

    request_id: str
    stack: str = Field(description="`cascade` or `boost`")
    results: list[MixedResultOut]
    timing_ms: TimingOut


class DomainOut(BaseModel):
    """A domain at a glance."""

    domain: str
    state: str = Field(description="`live`, `stale` (an older version answers), `broken` or `idle` (nothing live)")
    version: int | None
    digest: str | None
    n_classes: int | None
    error: str | None = Field(None, description="code of what keeps the wanted version from being live")


class DomainsOut(BaseModel):
    """Answer of `GET /domains`."""

    domains: list[DomainOut]


class DomainDetailOut(DomainOut):
    """Answer of `GET /domains/{domain}`."""

    classes: list[str]
    nbytes: int | None = Field(description="memory of the live stack")


class VersionOut(BaseModel):
    """One version of a domain."""

    domain: str
    version: int
    digest: str
    size_bytes: int
    created_at: str
    is_live: bool


class VersionsOut(BaseModel):
    """Answer of `GET /domains/{domain}/versions`."""

    domain: str
    versions: list[VersionOut]


class VersionDetailOut(VersionOut):
    """Answer of `GET /domains/{domain}/versions/{version}`: with the bundle's own manifest."""

    manifest: dict[str, Any]


class PublishedOut(BaseModel):
    """Answer of an upload."""

    domain: str
    version: int
    digest: str
    is_new: bool = Field(description="false when the newest version already had this content")
    is_live: bool


class LiveOut(BaseModel):
    """What a domain answers with from now on."""

    domain: str
    version: int
    digest: str


class HistoryEntryOut(BaseModel):
    """One change: its number, when, who, from, to."""

    seq: int
    at: str
    actor: str
    action: str
    from_version: int | None
    to_version: int | None


class HistoryOut(BaseModel):
    """Answer of `GET /domains/{domain}/history`, oldest first."""

    domain: str
    history: list[HistoryEntryOut]


class BackboneOut(BaseModel):
    """The backbone that runs."""

    arch: str
    pretrained: str | None
    fingerprint: str
    image_size: int
    device: str
    dtype: str


class InfoOut(BaseModel):
    """Answer of `GET /info`."""

    name: str
    version: str
    backbone: BackboneOut
    preprocess: str
    store_is_writable: bool
    limits: dict[str, int | float]


class ReadyOut(BaseModel):
    """Answer of `GET /readyz`: whether to send traffic here; each domain's state where the caller may know it."""

    is_ready: bool
    reason: str | None
    domains: dict[str, str] = {}
