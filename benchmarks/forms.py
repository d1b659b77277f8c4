"""Several photographs in one request."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx


def as_form(photographs: Sequence[Path], n_images: int) -> dict[str, Any]:
    """A plan's fields for requests of so many photographs each; the body is written beside them."""
    files = [("images", (path.name, path.read_bytes())) for path in (list(photographs) * n_images)[:n_images]]
    request = httpx.Request("POST", "http://localhost", files=files)
    body = photographs[0].parent / "form"
    body.write_bytes(request.read())
    return {"bodies": [str(body)], "content_type": request.headers["content-type"], "n_images": n_images}
