"""Class names that CLIP reads better than the spelling of an archive's folders. Source: CoOp, `datasets/*.py`.

Names that a table does not hold stay as they are, so a source that was made with the new names is left alone.
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
