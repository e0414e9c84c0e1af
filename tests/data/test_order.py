"""`python -m trainer.data.order` names the samples of a step."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_bad_input import image_folder
from tests.trainer_command import ROOT, environment
from trainer.config import compose, to_yaml
from trainer.data import datasets, order
from trainer.data.sampler import KeyedPermutation

SYNTHETIC = ["data=synthetic", "data.args={n: 50, n_val: 10}", "global_batch_size=16", "epochs=2", "seed=9"]


def table(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert order.main(list(arguments)) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split("\t") == ["step", "epoch", "rank", "micro_batch", "sample", "path"]
    return [row.split("\t") for row in rows]


def test_the_steps_of_a_job_are_listed_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys, *SYNTHETIC, "micro_batch_size=3", "--step", "4", "--steps", "2", "--world-size", "3")
    orders = [KeyedPermutation(50, seed=9, epoch=epoch)(np.arange(50)).tolist() for epoch in (0, 1)]
    assert [int(row[4]) for row in rows] == orders[0][48:] + orders[1][:16]
    # Two samples are left for the last step of the first epoch: one of three workers has none.
    assert [row[:4] for row in rows[:2]] == [["4", "1", "1", "0"], ["4", "1", "2", "0"]]
    places = [(row[2], row[3]) for row in rows[2:]]
    assert places == sorted(places)
    assert {row[:2] == ["5", "2"] for row in rows[2:]} == {True}
    sizes = [places.count(place) for place in dict.fromkeys(places)]
    assert (sum(sizes), max(sizes), len(sizes)) == (16, 3, 6)


def test_a_run_is_listed_with_its_own_workers_and_its_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root, run = image_folder(tmp_path / "photos"), tmp_path / "run"
    run.mkdir()
    config = compose(["data=folder", f"data.root={root}", "global_batch_size=4", "epochs=1", "data.val_fraction=0.3"])
    (run / "config.yaml").write_text(to_yaml(config))
    (run / "job.json").write_text('{"world_size": 2}')
    rows = table(capsys, str(run), "--step", "2")
    assert [row[2] for row in rows] == ["0", "0", "1", "1"]
    train = datasets.load(config.data).train
    for row in rows:
        assert Path(row[5]).is_file()
        assert train[int(row[4])][1] == int(Path(row[5]).parent.name[-1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--step", "1"], "nowhere is no run directory"),
        (["recipe=nonsense", "--step", "1"], "nonsense"),
        (["recipe=digits", "optim.lr=-1", "--step", "1"], "optim.lr=-1"),
        ([*SYNTHETIC, "--step", "8", "--steps", "2"], "step 9 is after the run's last, 8"),
    ],
)
def test_what_cannot_be_listed_is_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert order.main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["recipe=digits"], ["recipe=digits", "--step", "0"], []])
def test_wrong_arguments_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        order.main(arguments)
    assert ended.value.code == 2


def test_mistakes_are_told_before_torch_is_imported() -> None:
    tried = "from trainer.data import order; assert order.main(['x', '--step', '1']) == 2"
    script = f"import sys; {tried}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
