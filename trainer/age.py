"""How long this process has been running."""

import os
import time
from pathlib import Path


def process_age_s() -> float:
    """Seconds since this process was started, to a hundredth: field 22 of proc_pid_stat(5), in ticks since boot.

    psutil adds the ticks to the time of the boot, which the kernel gives in whole seconds.
    """
    after_name = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(after_name[19]) / os.sysconf("SC_CLK_TCK")
