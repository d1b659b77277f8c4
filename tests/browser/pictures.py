"""Pictures of the demo domains."""

from importlib import resources
from pathlib import Path

ASSETS = Path(str(resources.files("service") / "demo"))


def pictures_of(domain):
    return sorted((ASSETS / "images" / domain).iterdir())
