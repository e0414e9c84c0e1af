"""The main job through its public commands: train, look at what it leaves, stop, resume, debug."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import get_model

import trainer.model.zoo.small_resnet  # noqa: F401  # registers the model
from tests.trainer_command import DIGITS, PACELINE, ROOT, TORCHRUN, TRAINER, environment, interrupt, run, succeed
from trainer import checkpoint
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json

SHORT = [*DIGITS, "epochs=3", "log_every_steps=5", "checkpoint.every_steps=7", "deterministic=true"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run in one process that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(TRAINER, *SHORT, f"run.dir={folder}", "run.name=whole")
    return RunDir(folder / "whole")


def weights(run_dir: RunDir, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run_dir.weights(name))


def same_weights(a: RunDir, b: RunDir) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_two_workers_under_torchrun_learn_digits_and_leave_a_complete_run(tmp_path: Path) -> None:
    said = succeed(TORCHRUN, *DIGITS, f"run.dir={tmp_path}", "run.name=d")
    run_dir = RunDir(tmp_path / "d")
    summary = read_json(run_dir.summary)
    assert summary["best/accuracy"] > 0.93
    assert summary["world_size"] == 2
    assert summary["preprocessing"].keys() >= {"image_size", "mean", "std", "interpolation"}
    assert said.count("Done in") == 1
    assert f"{run_dir.weights('best')}" in said
    assert f"paceline status {run_dir.path}\n" in said
    assert read_json(run_dir.status)["state"] == "finished"
    assert len(read_json(run_dir.environment)["workers"]) == 2
    assert json.loads(run_dir.classes.read_text()) == [str(digit) for digit in range(10)]
    assert any("host/cpu_percent" in row for row in read_json_lines(run_dir.monitor))
    train_rows = [row for row in read_json_lines(run_dir.metrics) if "train/loss" in row]
    assert {"step", "epoch", "samples", "time", "train/lr", "perf/images_per_second"} <= train_rows[0].keys()
    assert train_rows[-1]["train/loss"] < train_rows[0]["train/loss"]


def test_the_weights_are_a_plain_state_dict_of_the_named_model(whole: RunDir) -> None:
    model = get_model("small_resnet", num_classes=10, image_size=8)
    told = model.load_state_dict(weights(whole, "best"), strict=True)
    assert (told.missing_keys, told.unexpected_keys) == ([], [])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights(whole, "best").items())


def test_every_validation_sample_is_counted_once_at_any_world_size(whole: RunDir, tmp_path: Path) -> None:
    succeed(TORCHRUN, *SHORT, f"run.dir={tmp_path}", "run.name=two", "evaluate.batch_size=13")
    counts = []
    for run_dir in (whole, RunDir(tmp_path / "two")):
        counts += [row["val/samples"] for row in read_json_lines(run_dir.metrics) if "val/samples" in row]
    assert len(set(counts)) == 1
    assert len(counts) == 6
    train_rows = [
        [(row["step"], row["epoch"], row["samples"]) for row in read_json_lines(run_dir.metrics) if "train/loss" in row]
        for run_dir in (whole, RunDir(tmp_path / "two"))
    ]
    assert train_rows[0] == train_rows[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_ended_goes_on_to_the_same_weights_and_metrics(
    whole: RunDir, tmp_path: Path, number: signal.Signals
) -> None:
    cut = RunDir(tmp_path / "cut")
    arguments = [*SHORT, f"run.dir={tmp_path}", "run.name=cut"]
    code, said = interrupt(TRAINER, *arguments, when=lambda: bool(checkpoint.steps(cut)), number=number)
    if number == signal.SIGTERM:
        assert code == 75, said
        assert read_json(cut.status)["state"] == "preempted"
        again = next(line.split(maxsplit=1)[1] for line in said.splitlines() if line.split()[:1] == ["again"])
        command = shlex.split(again)
        assert command[1:] == [*TRAINER[1:], *arguments]
    else:
        command = [*TRAINER, *arguments]
        assert code == -signal.SIGKILL
    stopped_at = checkpoint.steps(cut)[-1]
    assert 0 < stopped_at < read_json(whole.status)["step"]
    assert f"goes on after step {stopped_at:,}" in succeed(command)
    assert same_weights(whole, cut)
    rows = {}
    for run_dir in (whole, cut):
        validation = [row for row in read_json_lines(run_dir.metrics) if "val/loss" in row]
        rows[run_dir.name] = [(row["step"], row["val/loss"], row["val/accuracy"]) for row in validation]
    assert rows["whole"] == rows["cut"]
    steps = [row["step"] for row in read_json_lines(cut.metrics) if "train/loss" in row]
    assert steps == sorted(set(steps))


def test_a_finished_run_is_left_alone_and_a_changed_one_is_refused(whole: RunDir) -> None:
    before = whole.metrics.read_bytes()
    arguments = [*SHORT, f"run.dir={whole.path.parent}", "run.name=whole"]
    attempts = whole.next_attempt()
    said = succeed(PACELINE, *arguments)
    assert "run whole is finished: nothing was started" in said
    assert "epochs=6 run.accept_changes=true" in said
    assert "run.fresh=true" in said
    assert "run.fresh=true" in said
    assert f"{whole.weights('best')}" in said
    assert "worker" not in said
    assert whole.next_attempt() == attempts
    assert "is finished" in succeed(TRAINER, *arguments)
    refused = run(TRAINER, *arguments, "optim.lr=0.123")
    assert refused.returncode == 2
    assert "optim.lr" in refused.stderr
    assert "run.fresh=true" in refused.stderr
    assert whole.metrics.read_bytes() == before


@pytest.mark.parametrize("command", [TRAINER, PACELINE])
def test_debug_leaves_an_existing_run_alone(whole: RunDir, command: list[str]) -> None:
    before = whole.status.read_bytes(), whole.config.read_bytes()
    refused = run(command, *SHORT, f"run.dir={whole.path.parent}", "run.name=whole", "debug=true")
    assert refused.returncode == 2, refused.stderr
    assert "debug was false and is now true" in refused.stderr
    assert (whole.status.read_bytes(), whole.config.read_bytes()) == before


def test_what_a_finished_run_has_lost_is_made_again(whole: RunDir, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "whole")
    shutil.copytree(whole.path, run_dir.path)
    shutil.rmtree(run_dir.path / "weights")
    run_dir.summary.unlink()
    succeed(PACELINE, *SHORT, f"run.dir={tmp_path}", "run.name=whole", "cluster.gpus_per_node=1")
    assert same_weights(whole, run_dir)
    assert weights(run_dir, "best").keys() == weights(whole, "best").keys()
    assert read_json(run_dir.summary)["val/accuracy"] == read_json(whole.summary)["val/accuracy"]


def test_a_finished_run_can_be_prolonged(tmp_path: Path) -> None:
    arguments = [*SHORT, f"run.dir={tmp_path}", "run.name=p"]
    succeed(TRAINER, *arguments, "epochs=1")
    summary = RunDir(tmp_path / "p").summary
    causes = read_json(summary)["seconds_by_cause"]
    began = time.time()
    said = succeed(TRAINER, *arguments, "epochs=2", "run.accept_changes=true")
    assert "goes on after step 23 of 46" in said
    # The first attempt's time counts, too.
    took = read_json(summary)
    assert took["seconds"] > took["time"] - began + sum(causes.values()) / 2
    assert said.count("run.accept_changes=true: epochs was 1 and is now 2") == 1
    assert [row["epoch"] for row in read_json_lines(RunDir(tmp_path / "p").metrics) if "val/loss" in row] == [1, 2]
    shortened = succeed(PACELINE, *arguments, "epochs=1", "run.accept_changes=true", "cluster.gpus_per_node=1")
    assert shortened.count("run.accept_changes=true: epochs was 2 and is now 1") == 1
    assert "has trained 46 steps already, and 23 steps are asked for: nothing is left" in shortened


def test_a_damaged_checkpoint_is_passed_over(whole: RunDir, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "damaged")
    arguments = [*SHORT, "checkpoint.keep=5", f"run.dir={tmp_path}", "run.name=damaged"]
    interrupt(TRAINER, *arguments, when=lambda: len(checkpoint.steps(run_dir)) >= 2, number=signal.SIGKILL)
    newest = run_dir.checkpoint(checkpoint.steps(run_dir)[-1]) / "tensors.safetensors"
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    said = succeed(TRAINER, *arguments)
    assert "is damaged and was passed over" in said
    assert same_weights(whole, run_dir)


def test_debug_goes_through_every_stage_in_one_process_with_breakpoints(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(64, num_classes)\n"
        "        self.asked = False\n"
        "    def forward(self, images):\n"
        "        if not self.asked:\n"
        "            self.asked = True\n"
        "            breakpoint()\n"
        "        return self.layer(images.flatten(1))\n"
    )
    arguments = ["data=digits", "model._target_=mine.Net", "debug=true", "device=cpu", "precision=fp32", "run.name=b"]
    done = run(TRAINER, *arguments, cwd=tmp_path, text_in="p images.shape\nc\nc\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(Pdb) torch.Size([8, 1, 8, 8])" in done.stdout
    assert "now resume, train, validate" in done.stderr
    # Of four steps nothing is good.
    assert "val accuracy" in done.stderr
    assert "best" not in re.sub(r"weights/best\S+", "", done.stderr)
    run_dir = RunDir(tmp_path / "runs" / "b")
    assert read_json(run_dir.status)["state"] == "finished"
    assert [row["step"] for row in read_json_lines(run_dir.metrics) if "train/loss" in row] == [1, 2, 3, 4]


def test_wandb_is_told_by_default_and_offline_without_a_key(tmp_path: Path) -> None:
    arguments = ["recipe=digits", "device=cpu", "epochs=1", "run.name=w"]
    said = succeed(TRAINER, *arguments, cwd=tmp_path)
    line = next(line for line in said.splitlines() if "wandb sync" in line or "wandb' sync" in line)
    folder = tmp_path / line.split(" sync ")[1].strip()
    assert list(folder.glob("*.wandb"))
    assert (tmp_path / "runs" / "w" / "metrics.jsonl").exists()


def test_make_train_takes_digits_in_a_line_where_fashion_mnist_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "first_run.py", tmp_path / "tools")
    closed = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "PATH": str(tmp_path / "no-apt")}
    said = []
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "tools" / "first_run.py")],
        env={**environment(), **closed},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if "epoch 1 " in line:
                process.send_signal(signal.SIGTERM)
    (data,) = (line for line in said if line.startswith("[2/3] data"))
    assert "Fashion-MNIST cannot be had" in data
    assert "apt-get" in data
    assert data.endswith("training on scikit-learn's digits instead\n")
    assert any("recipe digits: small_resnet" in line for line in said)
    assert process.returncode == 75
