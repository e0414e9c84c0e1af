"""Data that has changed since a run began is told before anything is started."""

from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from tests.data.test_folder import load, many
from trainer.config import Config, DataConfig, RunConfig
from trainer.data.identity import identity
from trainer.data.recall import check_recalled
from trainer.errors import ConfigError
from trainer.rundir import RunDir, write_json


def begun(folder: Path) -> tuple[RunDir, Path]:
    """A run with a checkpoint, and the images that it began with."""
    run, images = RunDir(folder / "runs" / "x"), many(folder / "images", "a", "b")
    write_json(run.checkpoint(7) / "state.json", {"data": {"classes": ["of an older one"]}})
    write_json(run.checkpoint(10) / "state.json", {"data": identity(load(images, val_fraction=0.3))})
    return run, images


def going_on(images: Path, **data: Any) -> Config:
    return Config(data=DataConfig(root=str(images), val_fraction=0.3, **data))


def refusal(run: RunDir, config: Config) -> ConfigError:
    with pytest.raises(ConfigError, match="the data has changed since this run began: ") as caught:
        check_recalled(run, config)
    return caught.value


def test_other_classes_and_another_number_of_images_are_told(tmp_path: Path) -> None:
    run, images = begun(tmp_path)
    (images / "empty").mkdir()
    check_recalled(run, going_on(images))
    (images / "a" / "000.png").rename(images / "a" / "more.png")
    check_recalled(run, going_on(images))
    (images / "a" / "more.png").unlink()
    error = refusal(run, going_on(images))
    assert error.problem.endswith("images were 60 and are now 59")
    assert "run.accept_changes=true" in error.fix
    check_recalled(run, Config(data=DataConfig(root=str(images)), run=RunConfig(accept_changes=True)))
    # Of a part of the images the number says nothing.
    check_recalled(run, going_on(images, limit=20))
    many(images, "c", count=1)
    error = refusal(run, going_on(images, limit=20))
    assert error.problem.endswith("the classes are others (c is new)")
    assert "the classes that it began with" in error.fix


def test_a_run_that_has_saved_nothing_has_nothing_to_recall(tmp_path: Path) -> None:
    _, images = begun(tmp_path)
    check_recalled(RunDir(tmp_path / "runs" / "new"), going_on(images))


def test_the_launcher_looks_before_it_starts_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, images = begun(tmp_path)
    (images / "b" / "000.png").unlink()
    where = [f"data.root={images}", f"run.dir={run.path.parent}", "run.name=x", "device=cpu"]
    for more in ([], ["--dry-run"]):
        assert cli.main(["run", *where, *more]) == 2
        assert "images were 60 and are now 59" in capsys.readouterr().err
    assert not (run.path / "job.json").exists()
