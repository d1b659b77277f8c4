"""The JSON bodies of requests and responses, except of classify requests.

Times are in milliseconds, probabilities between 0 and 1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prompt_store.manifest import DEFAULT_TEMPLATE, MAX_CLASSES, MAX_TEMPLATES, Template


class Input(BaseModel):
    """A query or a body of a request; unknown parameters and fields are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LiveBody(Input):
    """The body of `PUT /domains/{domain}/live`."""

    version: int = Field(ge=1, strict=True)


class RolloutBody(Input):
    """The body of `POST /domains/{domain}/rollout`."""

    version: int = Field(ge=1, le=2**53, strict=True, description="the candidate")
    mode: Literal["canary", "shadow"] = Field(
        "shadow", description="`canary`: the candidate answers; `shadow`: it only scores copies of the images"
    )
    percent: float = Field(10, gt=0, le=100, allow_inf_nan=False, description="share of the requests that take part")
    max_disagreement: float = Field(
        0.05, ge=0, le=1, allow_inf_nan=False, description="a larger share of images ends the rollout"
    )
    max_confidence_shift: float = Field(
        0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="a larger mean difference of the highest probabilities ends the rollout",
    )
    min_images: int = Field(200, ge=1, le=10**6, strict=True, description="compared images before the first decision")
    then: Literal["activate", "hold"] = Field(
        "hold", description="`activate`: make the candidate live after `min_images`; `hold`: go on"
    )


class NewDomainBody(Input):
    """The body of `PUT /domains/{domain}`."""

    classes: list[str] = Field(min_length=1, max_length=MAX_CLASSES, description="class names, normalized")
    templates: list[Template] = Field(
        [],
        max_length=MAX_TEMPLATES,
        description=f"text around the class names, each with one `{{}}`; default: those of `boosted_by`, or "
        f"`{DEFAULT_TEMPLATE}`",
    )
    boosted_by: str | None = Field(None, description="domain whose boosting prompts are copied; null for none")


class FitQuery(Input):
    """What to fit, as the query of `GET /domains/{domain}/fit`."""

    based_on: Annotated[int, Field(ge=1, le=2**53)] | Literal["live"] = Field(
        "live", description="the version whose prompts and text features are used"
    )
    classes: Literal["own", "examples"] = Field(
        "own",
        description="`own`: the version's classes, then new labels; `examples`: only classes with examples",
    )
    method: Literal["auto", "gda", "ridge", "tip-adapter"] = Field("auto", description="see few-shot heads")
    unlabelled: bool = Field(False, description="use the unlabelled examples, if that improves the fit (auto and gda)")


class FitBody(FitQuery):
    """The body of `POST /domains/{domain}/fit`; unknown fields are rejected."""

    activate: bool = Field(True, strict=True, description="also make it live; requires the scope `activate`")


class PredictionOut(BaseModel):
    """One class with its probability."""

    label: str
    class_id: int = Field(description="index into the bundle's classes, or into `labels` if given")
    probability: float


class ResultOut(BaseModel):
    """The result for one image: predictions or an error."""

    index: int
    name: str | None = Field(None, description="file name of a multipart image")
    predictions: list[PredictionOut] = []
    notes: list[str] = Field([], description="conversions of the image, such as `cmyk`")
    error: dict[str, Any] | None = Field(None, description="a problem (RFC 9457) if this image failed")
    abstained: bool = Field(False, description="only with `abstain`: even the most probable class is too uncertain")
    label: str | None = Field(None, description="only with `abstain`: the most probable class; null if abstained")
    embedding: list[float] | None = Field(None, description="only with `return=embedding`: unit norm")


class TimingOut(BaseModel):
    """Duration of each stage in milliseconds, for its slowest image."""

    decode: float
    queue: float
    device: float
    total: float


class ClassifyOut(BaseModel):
    """Response of `POST /classify/{domain}`."""

    request_id: str
    domain: str
    version: int
    digest: str
    is_candidate: bool = Field(False, description="only from the candidate of a rollout")
    stack: str = Field(description="`cascade` or `boost`")
    results: list[ResultOut]
    timing_ms: TimingOut


class MixedResultOut(ResultOut):
    """The result for one image, and the version that was used."""

    domain: str | None = Field(description="null if the given name is not a valid domain name")
    version: int | None = Field(None, description="null if no version was available, see `error`")
    digest: str | None = None
    is_candidate: bool = Field(False, description="only from the candidate of a rollout")


class MixedOut(BaseModel):
    """Response of `POST /classify`."""

    request_id: str
    stack: str = Field(description="`cascade` or `boost`")
    results: list[MixedResultOut]
    timing_ms: TimingOut


class DomainOut(BaseModel):
    """Summary of a domain."""

    domain: str
    state: str = Field(description="`live`, `stale` (an older version serves), `broken` or `idle` (no live version)")
    version: int | None
    digest: str | None
    n_classes: int | None
    live_since: str | None = Field(description="when the version was activated; null without a live version")
    candidate: int | None = Field(None, description="the candidate of the running rollout")
    has_boosting: bool = Field(description="whether it has boosting prompts that a new domain can copy (`boosted_by`)")
    error: str | None = Field(None, description="error code if the activated version could not be loaded")


class DomainsOut(BaseModel):
    """Response of `GET /domains`."""

    domains: list[DomainOut]


class DomainDetailOut(DomainOut):
    """Response of `GET /domains/{domain}`."""

    classes: list[str]
    nbytes: int | None = Field(description="size of the live stack in bytes")


class SignatureOut(BaseModel):
    """A signature that is stored with a version."""

    key: str = Field(description="SHA-256 of the public key that made it; empty if the file is damaged")
    name: str = Field(description="file name of this key on the server without its suffix; empty if not verified")
    is_verified: bool = Field(description="valid, and by a key of `require_signature`, or else of `signing_key`")
    problem: str = Field(description="why it is not verified; empty if it is")


class VersionOut(BaseModel):
    """One version of a domain."""

    domain: str
    version: int
    digest: str
    size_bytes: int
    created_at: str
    is_live: bool
    signatures: list[SignatureOut] = Field(description="all stored signatures of the bundle; empty if it has none")


class VersionsOut(BaseModel):
    """Response of `GET /domains/{domain}/versions`."""

    domain: str
    versions: list[VersionOut]


class VersionDetailOut(VersionOut):
    """Response of `GET /domains/{domain}/versions/{version}`, with the bundle's manifest."""

    manifest: dict[str, Any]


class PublishedOut(BaseModel):
    """Response of an upload."""

    domain: str
    version: int
    digest: str
    is_new: bool = Field(description="false if the newest version already has this content")
    is_live: bool


class BaseVersionOut(BaseModel):
    """The version that another one was made from."""

    domain: str
    version: int
    digest: str


class FitOut(BaseModel):
    """Response of `GET /domains/{domain}/fit`."""

    domain: str
    based_on: BaseVersionOut
    revision: int = Field(description="of the domain's examples; rises with every change")
    examples_digest: str = Field(description="SHA-256 over the labelled examples")
    classes: str = Field(description="as requested")
    method: str = Field(description="as requested; the report has the chosen one")
    unlabelled: bool = Field(description="as requested")
    new_classes: list[str] = Field(description="classes that the base version lacks")
    report: dict[str, Any] = Field(
        description="as of `caspl fit --json`; suspects have `id` and `name` of their example"
    )


class FittedOut(PublishedOut, FitOut):
    """Response of `POST /domains/{domain}/fit`: the published version, and the report."""


class NewDomainOut(PublishedOut):
    """Response of `PUT /domains/{domain}`: its first version, which is live."""

    classes: list[str] = Field(description="class names, normalized")
    templates: list[str]
    boosted_by: BaseVersionOut | None = Field(description="the version whose boosting prompts were copied")


class LiveOut(BaseModel):
    """The live version after the change."""

    domain: str
    version: int
    digest: str


class RolloutOut(BaseModel):
    """Response of `POST` and `GET /domains/{domain}/rollout`: the plan, and this server's counts since its start."""

    domain: str
    version: int = Field(description="the candidate")
    digest: str
    live_version: int
    mode: str
    percent: float
    max_disagreement: float
    max_confidence_shift: float
    min_images: int
    then: str
    started_at: str
    started_by: str
    n_compared: int = Field(description="images that both versions were given")
    n_disagreed: int = Field(description="of these, those with another most probable class")
    n_failed: int = Field(description="of these, those that the candidate could not score")
    n_dropped: int = Field(description="images that were not compared, usually because the device was busy")
    disagreement: float | None = Field(description="share of the compared images, failed ones included")
    confidence_shift: float | None = Field(description="mean difference of the highest probabilities, candidate - live")
    confidence_shift_error: float | None = Field(description="its standard error")


class GroupsOut(BaseModel):
    """Response of `GET /domains/{domain}/examples/groups`: ids of unlabelled examples."""

    domain: str
    groups: list[list[int]] = Field(description="similar images; the largest group and the most typical image first")
    not_grouped: list[int] = Field(description="beyond `limit`, or without an embedding under the live version")


class HistoryEntryOut(BaseModel):
    """One change of a domain."""

    seq: int
    at: str
    actor: str
    action: str
    from_version: int | None
    to_version: int | None
    detail: str = Field("", description="figures that ended a rollout")


class HistoryOut(BaseModel):
    """Response of `GET /domains/{domain}/history`, oldest first."""

    domain: str
    history: list[HistoryEntryOut]


class BackboneOut(BaseModel):
    """The loaded backbone; `backend` and `dtype` are those of the image tower."""

    arch: str
    pretrained: str | None
    fingerprint: str
    image_size: int
    device: str
    backend: str
    dtype: str


class BatchesOut(BaseModel):
    """How the device is used: what `caspl plan` needs besides times."""

    max_rows: int = Field(description="images per batch at most")
    n_concurrent: int = Field(description="batches that run at the same time")
    n_pipelined: int = Field(description="batches that are prepared while others run")
    n_cores: int = Field(description="cores that the process may use")


class InfoOut(BaseModel):
    """Response of `GET /info`."""

    name: str
    version: str
    backbone: BackboneOut
    preprocess: str
    store_is_writable: bool
    batches: BatchesOut
    limits: dict[str, int | float]


class SourceOut(BaseModel):
    """An address that the service follows."""

    address: str
    state: str = Field(description="`new` (not checked yet), `ok` or `failed` (the live version goes on serving)")
    domain: str | None
    digest: str | None = Field(description="of the last bundle that was accepted")
    checked_at: str | None = Field(description="the last successful check")
    error: str | None = Field(description="code of the last failure; null if there is none since `checked_at`")
    detail: str | None


class ReadyOut(BaseModel):
    """Response of `GET /readyz`; `domains`, `stuck` and `sources` are included only for authorized clients."""

    is_ready: bool
    reason: str | None
    domains: dict[str, str] = {}
    stuck: list[str] = []
    sources: list[SourceOut] = []
