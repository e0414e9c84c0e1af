"""The processes of a machine, whatever they are called."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from launcher import agents
from launcher.hang.stacks import state_of
from launcher.processes import catches, descendants
from tests.waiting import until
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


def test_a_stopped_agent_is_killed_when_its_workers_are_not_stopped_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "_LOOK_S", 0.02)
    with subprocess.Popen(["sh", "-c", "sleep 600 & wait"]) as agent:
        until(lambda: descendants(root=agent.pid), "there is a worker", deadline_s=5)
        [worker] = descendants(root=agent.pid)
        looks, killed = [0], list[bool]()

        def look(pid: int) -> tuple[str, bool]:
            looks[0] += 1
            return state_of(pid)

        monkeypatch.setattr(agents, "state_of", look)
        attending = threading.Thread(target=lambda: killed.append(agents.attend(agent, 0.2)), daemon=True)
        for pid in (agent.pid, worker):
            os.kill(pid, signal.SIGSTOP)
        attending.start()
        # Two for each time.
        until(lambda: looks[0] > 2 * 30, "it looks for much longer than the limit", deadline_s=10)
        assert agent.poll() is None
        os.kill(worker, signal.SIGCONT)
        attending.join(5)
        os.kill(worker, signal.SIGKILL)
        assert (killed, agent.returncode) == ([True], -signal.SIGKILL)
