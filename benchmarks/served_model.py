"""Which model a benchmark serves: named and loaded as the service does it."""

from dataclasses import dataclass

from service.settings import Settings, load_settings


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What the options of every benchmark of serving begin with; see the commands' help."""

    backbone: str = "ViT-B-16"
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    seed: int = 0

    @property
    def weights_seed(self) -> int | None:
        """Seed of random weights; the demo's backbones have their own."""
        return None if self.backbone.startswith("demo") else self.seed

    def settings(self) -> Settings:
        """Those of a service with this model."""
        return load_settings(
            backbone=self.backbone,
            random_weights=self.weights_seed,
            device=self.device,
            dtype=self.dtype,
            n_torch_threads=self.threads,
        )
