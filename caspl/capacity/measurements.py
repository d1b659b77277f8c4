"""What `caspl plan` knows of one server: its batch times and the time of everything around them, as a JSON file."""

from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from caspl.errors import MeasurementsError
from prompt_store.validation import plain_message


class BatchTime(BaseModel):
    """Seconds of a batch of `rows` images, while as many batches run as the device runs concurrently."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(ge=1)
    seconds: float = Field(gt=0)


class Measurements(BaseModel):
    """Measured times of one server, in seconds.

    Attributes:
        version: of this format.
        backbone, device, dtype: of the server.
        date: UTC date of the measurement.
        pictures: the images that were sent, in words.
        max_rows: images per batch at most.
        n_concurrent: batches that run at the same time.
        n_pipelined: batches that are prepared while others run; only one if there is any.
        n_cores: cores that the server may use.
        shares_cores: whether batches run on the cores that decode images, too.
        batches: times by batch size, ascending, the first for one image.
        alone_s: time of a single image on an idle device, where it may use all cores.
        decode_s: decoding one image on one core.
        request_s: the server's work for a request outside decoding, queue and device.
        network_s: from the client's point of view, the rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    backbone: str
    device: str
    dtype: str
    date: str
    pictures: str
    max_rows: int = Field(ge=1)
    n_concurrent: int = Field(ge=1)
    n_pipelined: int = Field(ge=0, le=1)
    n_cores: int = Field(ge=1)
    shares_cores: bool
    batches: tuple[BatchTime, ...] = Field(min_length=1)
    alone_s: float = Field(gt=0)
    decode_s: float = Field(ge=0)
    request_s: float = Field(ge=0)
    network_s: float = Field(ge=0)

    @model_validator(mode="after")
    def _sizes_ascend_from_one(self) -> Self:
        sizes = [batch.rows for batch in self.batches]
        if sizes[0] != 1 or sizes != sorted(set(sizes)):
            raise ValueError(f"batches must ascend from 1 row, found {sizes}")
        return self

    def batch_s(self, rows: int) -> float:
        """Time of a batch: interpolated, and beyond the largest measured size with the slope of the last two."""
        sizes, seconds = [one.rows for one in self.batches], [one.seconds for one in self.batches]
        if rows <= sizes[-1]:
            return float(np.interp(rows, sizes, seconds))
        slope_s = seconds[-1] if len(sizes) == 1 else (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
        return seconds[-1] + (rows - sizes[-1]) * max(0.0, slope_s)

    def host_s(self, images_per_request: int) -> float:
        """Core seconds per image outside the device."""
        return self.decode_s + self.request_s / images_per_request

    def slowdown(self, images_per_s: float, images_per_request: int) -> float:
        """Factor on batch times, because batches share the cores with decoding and HTTP; infinity at the limit."""
        busy = images_per_s * self.host_s(images_per_request) / self.n_cores if self.shares_cores else 0.0
        return 1 / (1 - busy) if busy < 1 else np.inf

    def limits_per_s(self, images_per_request: int) -> dict[str, float]:
        """Images per second that each part of the server can sustain: `device`, `decoding`, `http`."""
        row_s = min(self.batch_s(rows) / rows for rows in range(1, self.max_rows + 1)) / self.n_concurrent
        if self.shares_cores:
            row_s += self.host_s(images_per_request) / self.n_cores
        decoding = self.n_cores / self.decode_s if self.decode_s else np.inf
        http = images_per_request / self.request_s if self.request_s else np.inf
        return {"device": 1 / row_s, "decoding": decoding, "http": http}

    def capacity_per_s(self, images_per_request: int) -> float:
        """Images per second that the server can sustain, without regard to latency."""
        return min(self.limits_per_s(images_per_request).values())


def read_measurements(path: Path) -> Measurements:
    """Read a file that `write_measurements` wrote.

    Raises:
        MeasurementsError: not such a file.
        OSError: it cannot be read.
    """
    try:
        return Measurements.model_validate_json(path.read_bytes())
    except ValidationError as error:
        advice = "Write the file with `caspl plan --measure PICTURE --domain DOMAIN --measurements FILE`."
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else plain_message(first["msg"])
        raise MeasurementsError(f"{path}: {reason}. {advice}") from error


def write_measurements(measurements: Measurements, path: Path) -> None:
    """Write the file."""
    path.write_text(measurements.model_dump_json(indent=1) + "\n", encoding="utf-8")
