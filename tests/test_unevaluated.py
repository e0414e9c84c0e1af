"""data.val_fraction=0: everything is trained on, nothing is evaluated, and the last weights are the result."""

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.trainer_command import DIGITS, TRAINER, succeed
from tests.workers import alone, train_here
from trainer.check.validate import validate
from trainer.config import compose
from trainer.errors import ConfigError, TrainingError
from trainer.evaluate.__main__ import main
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json

UNEVALUATED = [*DIGITS, "data.val_fraction=0", "run.name=x", "ema.decay=0.9"]


def test_a_run_without_validation_images_trains_on_all_and_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*UNEVALUATED, f"run.dir={tmp_path}", "epochs=1", "checkpoint.every_steps=10"]
    run_dir = RunDir(tmp_path / "x")
    run_dir.path.mkdir()
    train_here(alone(), arguments, stop_after=12)
    said = succeed(TRAINER, *arguments)
    assert "goes on after step 12 of 29" in said
    assert "1,797 training images and none for validation" in said
    assert "nothing is evaluated, and the last weights are the result" in said
    assert f"weights   {run_dir.weights('last')}" in said
    rows = list(read_json_lines(run_dir.metrics))
    assert rows[-1]["samples"] == 1797
    assert not any(name.startswith("val/") for row in rows for name in row)
    assert (read_json(run_dir.summary)["step"], read_json(run_dir.summary)["best/accuracy"]) == (29, None)
    assert {path.name for path in run_dir.weights("last").parent.iterdir()} == {
        "last.safetensors",
        "last_ema.safetensors",
    }
    assert main([str(run_dir.path), "weights=last", "device=cpu"]) == 2
    assert "there are no images to evaluate on: data.val_fraction=0 holds none out" in capsys.readouterr().err


def test_weights_that_end_as_no_numbers_are_no_result(tmp_path: Path) -> None:
    arguments = [
        *UNEVALUATED,
        f"run.dir={tmp_path}",
        "optim.schedule=constant",
        "optim.warmup_fraction=0",
        "max_steps=1",
        "optim.lr=1e38",
        "optim.weight_decay=1e3",
    ]
    with pytest.raises(TrainingError, match="not finite"):
        train_here(alone(), arguments)
    last = RunDir(tmp_path / "x").weights("last")
    assert not last.exists() or all(math.isfinite(float(value.sum())) for value in load_file(last).values())


def make_images(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"x")
    return f"data.root={root}"


@pytest.mark.parametrize(
    ("override", "instead"),
    [("evaluate.patience=3", "evaluate.patience=null"), ("checkpoint.every=evaluation", "checkpoint.every=auto")],
)
def test_what_follows_from_evaluations_is_refused_before_anything_starts(
    override: str, instead: str, tmp_path: Path
) -> None:
    own = ["data=folder", make_images(tmp_path / "own", "a/1.png", "b/1.png")]
    for data in (["data=digits"], own):
        with pytest.raises(ConfigError, match=f"{override} needs evaluations") as refused:
            validate(compose([*data, "data.val_fraction=0", override]), world_size=1)
        assert instead in refused.value.fix
    split = make_images(tmp_path / "split", "train/a/1.png", "train/b/1.png", "val/a/1.png")
    validate(compose(["data=folder", split, "data.val_fraction=0", override]), world_size=1)
