"""Replacements for class names that CLIP handles poorly as spelled in the archives. Source: CoOp, `datasets/*.py`.

Names without a replacement are unchanged, so data that already has the new names is left alone.
"""

from collections.abc import Mapping
from typing import Final

CALTECH_NAMES: Final[Mapping[str, str]] = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
EUROSAT_NAMES: Final[Mapping[str, str]] = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}
