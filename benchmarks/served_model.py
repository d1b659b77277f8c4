"""Which model a benchmark serves: named and loaded as the service does it."""

from dataclasses import dataclass

from service.server import on_this_device
from service.settings import Settings, load_settings

TRIALS_S = 3600.0
"""A service's trials are over before it is measured, however many domains it has."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What the options of every benchmark of serving begin with; see the commands' help."""

    backbone: str = "ViT-B-16"
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    seed: int = 0
    extra: tuple[tuple[str, str], ...] = ()
    """Further settings of the service, by name."""

    @property
    def weights_seed(self) -> int | None:
        """Seed of random weights; the demo's backbones have their own."""
        return None if self.backbone.startswith("demo") else self.seed

    def settings(self) -> Settings:
        """Those of a service with this model, on this machine.

        Raises:
            SettingsError: no such setting, or a value out of its range.
        """
        given = {
            "backbone": self.backbone,
            "random_weights": self.weights_seed,
            "device": self.device,
            "dtype": self.dtype,
            "n_torch_threads": self.threads,
            "trials_s": TRIALS_S,
        }
        return on_this_device(load_settings(**given | dict(self.extra)))
