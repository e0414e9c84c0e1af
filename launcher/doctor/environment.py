"""Whether this machine and this environment are fit for a training. Torch is not imported: this takes a second."""

from launcher.doctor import graphics, host, network, places, software
from launcher.doctor.finding import Check
from launcher.doctor.surroundings import Surroundings

ALWAYS = (*software.CHECKS, graphics.gpus, *host.CHECKS, *network.CHECKS, *places.CHECKS)
"""What is looked at on every machine."""


def checks(here: Surroundings) -> tuple[Check[Surroundings], ...]:
    """What is looked at, in this order; of the GPUs' health only where there are some to use."""
    health = graphics.HEALTH if here.gpus else ()
    at = ALWAYS.index(graphics.gpus) + 1
    return (*ALWAYS[:at], *health, *ALWAYS[at:])
