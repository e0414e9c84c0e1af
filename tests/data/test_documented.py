"""The data set that docs/data.md shows can be trained on."""

import re
from pathlib import Path

from tests.trainer_command import DIGITS, ROOT, TRAINER, succeed
from trainer.rundir import RunDir, read_json


def test_the_documented_data_set_works(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), flags=re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    arguments = ["data._target_=mine.build", "data.args={held_out: 200}", "max_steps=20", "run.dir=runs", "run.name=m"]
    succeed(TRAINER, *DIGITS, *arguments, cwd=tmp_path)
    summary = read_json(RunDir(tmp_path / "runs" / "m").summary)
    assert summary["val/samples"] == 200
