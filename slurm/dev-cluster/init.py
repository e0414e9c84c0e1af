"""The first process of a machine of the cluster: it reaps what jobs leave behind, and with it everything there ends."""

import os
import signal
from contextlib import suppress

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
while True:
    signal.sigwait({signal.SIGCHLD})
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
