"""The processes of a machine, whatever they are called."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from launcher.hang.stacks import state_of
from launcher.processes import catches, descendants
from trainer.stop import STOP_SIGNALS


@pytest.fixture
def oddly_named() -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose name, which the kernel cuts off after 15 bytes, ends in the middle of a character."""
    rename = "open('/proc/self/comm', 'wb').write('a name that ✗'.encode()[:15]); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_name_that_is_no_text_hides_no_process(oddly_named: "subprocess.Popen[bytes]") -> None:
    pid = oddly_named.pid
    assert pid in descendants()
    assert state_of(pid)[0] in "RS"
    assert not catches(pid, STOP_SIGNALS[0])
