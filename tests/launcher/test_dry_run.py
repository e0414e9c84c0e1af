"""`paceline run --dry-run`: what it prints is what would run, and can be pasted."""

import json
import os
import subprocess
import sys
from pathlib import Path

from launcher.plan import torchrun_command
from tests.launcher.test_plan import planned
from tests.trainer_command import ROOT, free_port
from trainer.run.secrets import pasted

SECRET = "a secret's $value"

SCRIPT = """
import json, os, sys
names = ("RANK", "WORLD_SIZE", "GROUP_RANK", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME")
row = {"argv": sys.argv[1:], **{name: os.environ.get(name) for name in names}}
open(f"rank-{os.environ['RANK']}", "w").write(json.dumps(row))
"""


def dry_run(folder: Path, *words: str, **environment: str) -> tuple[str, list[str], dict[str, str]]:
    """What is printed, the command lines in it, and the environment for them."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    surroundings.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "launcher", "run", "--dry-run", *words],
        cwd=folder, env=surroundings, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "| torch\n" not in done.stderr
    assert not (folder / "runs").exists()
    begin = done.stdout.index("the same by hand\n")
    lines = done.stdout[begin:].split("\n\n")[0].splitlines()[1:]
    return done.stdout, [line.strip() for line in lines], surroundings


def test_the_printed_command_lines_start_the_same_workers_on_each_node_and_show_no_secret(tmp_path: Path) -> None:
    (tmp_path / "my script.py").write_text(SCRIPT)
    shown, commands, environment = dry_run(
        tmp_path, f"cluster.port={free_port()}", "cluster.nodes=2", "cluster.gpus_per_node=1", "device=cpu",
        "--", "my script.py", "--api-key", SECRET, f"--also=x{SECRET}y", "two words", "$HOME", "",
        MY_SECRET=SECRET, NCCL_DEBUG="INFO",
    )  # fmt: skip
    assert SECRET not in shown
    assert len(commands) == 2
    for line in ("NCCL_DEBUG ", "MY_SECRET ", "OMP_NUM_THREADS "):
        assert f"\n  {line}" in shown
    assert "INFO  (you)" in shown
    assert "set, not shown  (you)" in shown
    nodes = [
        subprocess.Popen(["sh", "-c", command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for node in nodes:
        _, err = node.communicate(timeout=90)
        assert node.returncode == 0, err
    for rank in (0, 1):
        row = json.loads((tmp_path / f"rank-{rank}").read_text())
        assert row["argv"] == ["--api-key", SECRET, f"--also=x{SECRET}y", "two words", "$HOME", ""]
        assert (row["RANK"], row["WORLD_SIZE"], row["GROUP_RANK"]) == (str(rank), "2", str(rank))
        # What is shown is what they have.
        for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"):
            assert any(line.split()[:2] == [name, row[name]] for line in shown.splitlines())


def test_only_the_variable_of_a_secret_is_left_to_the_shell() -> None:
    words = ["a.py", "x=$HF_TOKEN", "{t: $HF_TOKEN}", "${HF_TOKEN}s", "$HOME", "${seed}", ""]
    assert pasted(words) == ("""a.py x="$HF_TOKEN" '{t: '"$HF_TOKEN"'}' "${HF_TOKEN}"s '$HOME' '${seed}' ''""")


def test_nodes_that_share_a_machines_gpus_have_their_own_by_hand_too() -> None:
    def shares(**environment: str) -> list[str]:
        plan = planned(gpus=4, nodes=2, environment=environment)
        words = [torchrun_command(plan, node).split() for node in (0, 1)]
        return [next(word for word in of if word.startswith("CUDA_")) for of in words]

    assert shares() == ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3"]
    assert shares(CUDA_VISIBLE_DEVICES="3,2,1,0") == ["CUDA_VISIBLE_DEVICES=3,2", "CUDA_VISIBLE_DEVICES=1,0"]
