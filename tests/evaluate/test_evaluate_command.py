"""`python -m trainer.evaluate RUN` finds what the training found, and scikit-learn from the same weights."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn import metrics as sklearn
from torchvision.models import get_model

import trainer.model.zoo.small_resnet  # noqa: F401  # registers the model
from tests import warm
from tests.test_bad_input import image_folder
from tests.trainer_command import DIGITS, ROOT, environment, run, succeed
from trainer.config import from_yaml
from trainer.data import datasets
from trainer.evaluate import command, scorecard
from trainer.evaluate.__main__ import main
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json
from trainer.terminal.console import LineConsole

EVALUATE = [sys.executable, "-m", "trainer.evaluate"]
UNDER_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Two epochs of digits; the moving average is judged, since it is the better one so early."""
    folder = tmp_path_factory.mktemp("trained")
    succeed(
        [sys.executable, "-m", "trainer"], *DIGITS, "epochs=2", "ema.decay=0.99", "evaluate.best=val/ema_accuracy",
        f"run.dir={folder}", "run.name=t",
    )  # fmt: skip
    return RunDir(folder / "t")


@pytest.fixture
def copied(trained: RunDir, tmp_path: Path) -> RunDir:
    """A copy that a test may spoil."""
    return RunDir(shutil.copytree(trained.path, tmp_path / "copy"))


def own(run_dir: RunDir, kind: str) -> dict[str, float]:
    """The training's own last figures of the latest (`val/`) or the averaged weights (`val/ema_`)."""
    row = [row for row in read_json_lines(run_dir.metrics) if "val/loss" in row][-1]
    found = {name.removeprefix(kind): value for name, value in row.items() if name.startswith(kind)}
    return {name: value for name, value in found.items() if not name.startswith(("ema_", "samples"))}


def found_by(answer: str) -> dict[str, float]:
    metrics = json.loads(answer)["metrics"]
    return {name.removeprefix("val/"): value for name, value in metrics.items() if name != "val/samples"}


def test_the_best_weights_are_worth_what_the_training_said_and_what_scikit_learn_says(trained: RunDir) -> None:
    done = run(EVALUATE, str(trained.path), "device=cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert found_by(done.stdout) == pytest.approx(own(trained, "val/ema_"), abs=1e-6)
    evaluation = read_json(trained.evaluation)
    assert evaluation["on_request"] == json.loads(done.stdout)
    best: dict[str, Any] = evaluation["best"]
    assert best["weights"] == "moving average" == read_json(trained.summary)["best/weights"]
    assert best["confusion"] == evaluation["on_request"]["confusion"]

    splits = datasets.load(from_yaml(trained.config.read_text()).data)
    assert isinstance(splits.val, datasets.TensorImages)
    mean, std = splits.preprocessing.mean[0], splits.preprocessing.std[0]
    model = get_model("small_resnet", num_classes=10, image_size=8).eval()
    model.load_state_dict(load_file(trained.weights("best")))
    with torch.no_grad():
        chances = model((splits.val.images / 255 - mean) / std).double().softmax(dim=1).numpy()
    true, predicted = splits.val.targets.numpy(), chances.argmax(axis=1)
    assert best["metrics"]["val/ema_accuracy"] > 0.9
    assert best["metrics"]["val/ema_accuracy"] == sklearn.accuracy_score(true, predicted)
    assert best["metrics"]["val/ema_loss"] == pytest.approx(sklearn.log_loss(true, chances), abs=1e-6)
    assert np.array_equal(best["confusion"]["counts"], sklearn.confusion_matrix(true, predicted))
    report: Any = sklearn.classification_report(true, predicted, target_names=splits.classes, output_dict=True)
    for row in best["classes"]:
        expected = report[row["class"]]
        assert (row["samples"], row["f1"]) == (expected["support"], pytest.approx(expected["f1-score"], abs=1e-6))


def test_two_workers_find_the_same(trained: RunDir) -> None:
    done = run(UNDER_TORCHRUN, "trainer.evaluate", str(trained.path), "weights=last", "device=cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert found_by(done.stdout) == pytest.approx(own(trained, "val/"), abs=1e-6)


def test_a_training_with_more_workers_than_validation_images_counts_each_once(tmp_path: Path) -> None:
    processes = warm.start(
        "data=synthetic", "data.args={n: 16, n_val: 3, classes: 3, size: 8}", "model.name=small_resnet",
        "model.args={}", "global_batch_size=16", "max_steps=2", "evaluate.every=1", "tracking=none", "device=cpu",
        "precision=fp32", "run.dir=.", "run.name=few", world_size=4, folder=tmp_path,
    )  # fmt: skip
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4, (tmp_path / "rank-0.txt").read_text()
    run_dir = RunDir(tmp_path / "few")
    rows = [row for row in read_json_lines(run_dir.metrics) if "val/loss" in row]
    assert [row["val/samples"] for row in rows] == [3, 3]
    last = read_json(run_dir.evaluation)["last"]
    assert sum(row["samples"] for row in last["classes"]) == np.sum(last["confusion"]["counts"]) == 3


def test_images_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", split="train", per_class=8)
    image_folder(tmp_path / "images", split="val", per_class=3)
    whole = (tmp_path / "images/val/class_1/0.png").read_bytes()
    (tmp_path / "images/val/class_1/0.png").write_bytes(whole[:60])
    processes = warm.start(
        "data=folder", "data.root=images", "data.image_size=8", "data.on_bad_image=skip", "model.name=small_resnet",
        "model.args={}", "global_batch_size=16", "max_steps=1", "tracking=none", "device=cpu", "precision=fp32",
        "run.dir=.", "run.name=bad", world_size=2, folder=tmp_path,
    )  # fmt: skip
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "rank-0.txt").read_text()
    last = read_json(RunDir(tmp_path / "bad").evaluation)["last"]
    assert (last["skipped"], last["metrics"]["val/samples"]) == (1, 5)
    assert [row["samples"] for row in last["classes"]] == [3, 2]


def test_the_averaged_weights_are_kept_beside_the_latest(trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained.path), "weights=last_ema", "device=cpu", "--json"]) == 0
    assert found_by(capsys.readouterr().out) == pytest.approx(own(trained, "val/ema_"), abs=1e-6)


def test_the_tables_name_the_worst_classes_and_the_confusions(
    copied: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(copied.weights("last"))
    head = next(name for name, value in state.items() if tuple(value.shape) == (10,) and name.endswith("bias"))
    state[head][7] -= 100
    save_file(state, copied.path / "never-seven.safetensors")
    assert main([str(copied.path), f"weights={copied.path / 'never-seven.safetensors'}", "device=cpu"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    worst = lines.index(["class", "images", "recall", "precision", "F1"])
    assert lines[worst + 2] == ["7", "38", "0", "%", "0", "%", "0", "%"]
    confusions = lines.index(["true", "predicted", "images", "of", "the", "class"])
    assert "7" in {line[0] for line in lines[confusions + 2 :] if line}


def test_the_data_may_be_limited_and_batches_of_any_size(trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained.path), "data.limit=50", "evaluate.batch_size=7", "device=cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["val/samples"] == 50


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["weights=bst"], 2, "did you mean weights=best?"),
        (["weights=model.pth"], 2, "neither a name nor a .safetensors file"),
        (["weights=none.safetensors"], 2, "does not exist"),
        (["optim.lr=1"], 2, "optim.lr cannot be set for an evaluation"),
        (["data.rot=/x"], 2, "Did you mean data.root?"),
        (["data.limit=many"], 2, "data.limit takes a whole number"),
        (["evaluate.batch_size=0"], 2, "evaluate.batch_size=0 is out of range"),
        (["data.limit=1,2"], 2, "is not one value"),
        (["another"], 2, "one run at a time"),
        (["--jsn"], 2, "--json"),
    ],
)
def test_mistakes_are_told_with_what_mends_them(
    trained: RunDir, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert main([str(trained.path), *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 2


def test_an_unknown_run_is_told_with_the_nearest_and_without_torch(trained: RunDir) -> None:
    question = f"""
import sys
from trainer.evaluate.__main__ import main
assert main(["--help"]) == 0
assert main([{str(trained.path.parent / "tt")!r}]) == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", question], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[1].endswith(f"python -m trainer.evaluate {trained.path}")


def test_a_run_without_weights_is_not_ready(copied: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    copied.weights("best").unlink()
    assert main([str(copied.path)]) == 2
    assert "weights=last" in capsys.readouterr().err
    shutil.rmtree(copied.path / "weights")
    assert main([str(copied.path)]) == 3
    assert "has no weights yet" in capsys.readouterr().err


def test_the_weights_that_a_run_began_with_need_not_be_there_any_more(
    trained: RunDir, copied: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    text = copied.config.read_text()
    assert "weights: null" in text
    assert str(trained.path.parent) in text
    text = text.replace("weights: null", "weights: /moved/first.pth").replace(str(trained.path.parent), "/moved")
    copied.config.write_text(text)
    assert main([str(copied.path), "device=cpu", "--json"]) == 0
    assert found_by(capsys.readouterr().out)["accuracy"] > 0.5
    assert main([str(copied.path), "device=cpu", "model.weights=/moved/second.pth"]) == 2
    assert "model.weights=/moved/second.pth does not exist" in capsys.readouterr().err


def test_a_folder_of_quite_other_classes_is_refused_before_its_images_are_read(
    copied: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "other" / name).mkdir(parents=True)
        (tmp_path / "other" / name / "broken.png").touch()
    other = ["data.name=folder", f"data.root={tmp_path / 'other'}"]
    assert main([str(copied.path), *other, "device=cpu"]) == 2
    assert "'cat' was not learned, 'dog' was not learned" in capsys.readouterr().err


def test_other_classes_are_refused(copied: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    copied.classes.write_text(json.dumps([*"012345678", "nine"]))
    assert main([str(copied.path), "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert "'9' was not learned, 'nine' is missing" in error
    assert "data.root=DIR" in error


def test_weights_of_another_network_and_damaged_ones_are_refused(
    copied: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(copied.weights("best").read_bytes())
    content[-1] ^= 1
    copied.weights("best").write_bytes(content)
    assert main([str(copied.path), "device=cpu"]) == 2
    assert "is damaged: the checksum in it does not agree" in capsys.readouterr().err
    state = load_file(copied.weights("last"))
    save_file({name: torch.zeros(3) for name in state}, copied.weights("last"))
    assert main([str(copied.path), "weights=last", "device=cpu"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "does not fit small_resnet: " in said[0]
    assert said[0].endswith(f" in the model; and {len(state) - 3} more like these")
    copied.weights("last").write_bytes(b"nothing")
    assert main([str(copied.path), "weights=last", "device=cpu"]) == 2
    assert "is no safetensors file: it begins with b'nothing'" in capsys.readouterr().err


def test_an_evaluation_beside_a_running_training_takes_nothing_of_it_away(tmp_path: Path) -> None:
    run_dir, console = RunDir(tmp_path), LineConsole(io.StringIO(), None, clock=time.monotonic)

    def train() -> None:
        for step in range(1, 30):
            scorecard.write(run_dir, {"step": step}, best=True, best_step=step)
            assert read_json(run_dir.evaluation)["best"]["step"] == step

    def evaluate() -> None:
        for number in range(1, 30):
            command.keep(run_dir, {"number": number}, console)
            assert read_json(run_dir.evaluation)["on_request"]["number"] == number

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(train), pool.submit(evaluate)]:
            done.result()


def test_a_loading_process_that_dies_in_an_evaluation_is_named(
    copied: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    overrides = ["data._target_=tests.data.dying.build_validation", "data.args={how: SIGKILL}", "data.workers=1"]
    try:
        assert main([str(copied.path), *overrides, "device=cpu", "evaluate.batch_size=8"]) == 1
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "was ended by SIGKILL at sample 13 (/far/13.png)" in capsys.readouterr().err
