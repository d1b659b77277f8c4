"""Health, metadata and readiness by the Open Inference Protocol (KServe v2, Triton); a domain is a model."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from prompt_store.errors import VersionNotFoundError
from service.http.context import Context, ServiceContext
from service.observability.device import package_version

router = APIRouter(tags=["inference protocol"])

Version = Annotated[int, Path(ge=1, le=2**53)]
EXTENSIONS: Final = ("binary_tensor_data", "parameters", "schedule_policy")
PLATFORM: Final = "caspl_clip"


class ServerOut(BaseModel):
    """Response of `GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """An input or output; -1 is a variable size."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, str] = {}


class ModelOut(BaseModel):
    """Response of `GET /v2/models/{domain}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str] = Field(description="`live_version`, the default version; absent without one")


class ModelReadyOut(BaseModel):
    """Response of `GET /v2/models/{domain}/ready`."""

    name: str
    ready: bool


INPUTS: Final = [
    TensorMetadata(
        name="images",
        datatype="BYTES",
        shape=[-1],
        parameters={"content": "JPEG, PNG or WebP files; in JSON as base64. A request has this input or `pixels`."},
    ),
    TensorMetadata(
        name="pixels",
        datatype="UINT8",
        shape=[-1, -1, -1, 3],
        parameters={
            "content": "RGB images [N, height, width, 3] of equal size, channels last. The service resizes and crops "
            "them like files; clients do no preprocessing."
        },
    ),
]
OUTPUTS: Final = [
    TensorMetadata(name="labels", datatype="BYTES", shape=[-1, -1], parameters={"content": "most probable first"}),
    TensorMetadata(name="probabilities", datatype="FP32", shape=[-1, -1]),
    TensorMetadata(
        name="class_ids", datatype="INT32", shape=[-1, -1], parameters={"content": "indices into the model's classes"}
    ),
    TensorMetadata(
        name="embeddings",
        datatype="FP32",
        shape=[-1, -1],
        parameters={"content": "unit-norm image embeddings; returned only if requested by name"},
    ),
]


@router.get("/v2")
async def server_metadata() -> ServerOut:
    """Name, version and supported protocol extensions."""
    return ServerOut(name="caspl-serve", version=package_version(), extensions=list(EXTENSIONS))


@router.get("/v2/health/live")
async def server_live(context: Context, response: Response) -> dict[str, bool]:
    """Liveness, as `GET /livez`."""
    response.status_code = 200 if context.is_alive else 503
    return {"live": context.is_alive}


@router.get("/v2/health/ready")
async def server_ready(context: Context, response: Response) -> dict[str, bool]:
    """Readiness, as `GET /readyz`."""
    is_ready = context.not_ready_because() is None
    response.status_code = 200 if is_ready else 503
    return {"ready": is_ready}


@router.get("/v2/models/{domain}")
async def model_metadata(domain: str, context: Context) -> ModelOut:
    """Versions, inputs and outputs of a domain."""
    return await _metadata(context, domain)


@router.get("/v2/models/{domain}/versions/{version}")
async def version_metadata(domain: str, version: Version, context: Context) -> ModelOut:
    """The same, if the domain has this version."""
    metadata = await _metadata(context, domain)
    _require(metadata, version)
    return metadata


@router.get("/v2/models/{domain}/ready")
async def model_ready(domain: str, context: Context) -> ModelReadyOut:
    """Whether a domain has a live version; an error with the reason if not."""
    context.table.pin(domain)
    return ModelReadyOut(name=domain, ready=True)


@router.get("/v2/models/{domain}/versions/{version}/ready")
async def version_ready(domain: str, version: Version, context: Context) -> ModelReadyOut:
    """Whether a domain has this version, which is loaded by the first request for it."""
    _require(await _metadata(context, domain), version)
    return ModelReadyOut(name=domain, ready=True)


async def _metadata(context: ServiceContext, domain: str) -> ModelOut:
    state = context.table.state(domain)
    infos = await asyncio.to_thread(context.store.versions, domain)
    return ModelOut(
        name=domain,
        versions=[str(info.version) for info in infos],
        platform=PLATFORM,
        inputs=INPUTS,
        outputs=OUTPUTS,
        parameters={"live_version": str(state.live.version)} if state.live else {},
    )


def _require(metadata: ModelOut, version: int) -> None:
    if str(version) not in metadata.versions:
        raise VersionNotFoundError(f"{metadata.name} has no version {version}; it has {', '.join(metadata.versions)}.")
