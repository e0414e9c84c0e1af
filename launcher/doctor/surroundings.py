"""What the checks of an environment look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.doctor.gpu_facts import GpuFacts, Machine
from launcher.plan import CPU_WORKERS
from trainer.config import Config


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A job that is to run here.

    Attributes:
        config: its settings.
        environment: the user's variables.
        machine: what is known of driver and GPUs.
    """

    config: Config
    environment: Mapping[str, str]
    machine: Machine = field(default_factory=Machine)

    @property
    def gpus(self) -> tuple[GpuFacts, ...]:
        """The GPUs that it would use."""
        return () if self.config.device == "cpu" else self.machine.gpus

    @property
    def workers(self) -> int:
        """How many workers it would have on this machine."""
        devices = 0 if self.config.device == "cpu" else self.machine.visible
        return self.config.cluster.gpus_per_node or devices or CPU_WORKERS
