"""Whether this machine and this environment are fit for a training. Torch is not imported: this takes a second."""

from launcher.doctor import graphics, host, network, places, software
from launcher.doctor.finding import Check
from launcher.doctor.surroundings import Surroundings
from launcher.gpus import driver


def checks() -> tuple[Check[Surroundings], ...]:
    """What is looked at, in this order; of the GPUs' health only where there is a driver to ask."""
    health = graphics.HEALTH if driver() is not None else ()
    return (*software.CHECKS, graphics.gpus, *health, *host.CHECKS, *network.CHECKS, *places.CHECKS)
