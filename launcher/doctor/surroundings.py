"""What the checks of an environment look at besides the machine."""

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.gpus import count_gpus
from launcher.plan import CPU_WORKERS
from trainer.config import Config
from trainer.errors import UnfitError


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A job that is to run here.

    Attributes:
        config: its settings.
        environment: the user's variables.
    """

    config: Config
    environment: Mapping[str, str]

    @property
    def workers(self) -> int:
        """How many workers it would have on this machine."""
        asked = self.config.cluster.gpus_per_node
        try:
            return asked or count_gpus(self.environment) or CPU_WORKERS
        except UnfitError:
            return asked or CPU_WORKERS
