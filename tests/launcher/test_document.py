"""The commands of docs/launcher.md, in their order."""

import re
import subprocess
from pathlib import Path

from tests.test_documents import SCRIPT, runnable
from tests.trainer_command import ROOT, environment


def test_the_pages_commands_work_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "launcher.md").read_text(), flags=re.DOTALL)
    commands = [line for block in blocks for line in block.strip().splitlines()]
    assert len(commands) > 8
    for command in commands:
        done = subprocess.run(
            runnable(command), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False
        )
        # What the doctor finds is the machine's.
        allowed = (0, 3) if "doctor" in command else (0,)
        assert done.returncode in allowed, f"{command}\n{done.stdout}{done.stderr}"
