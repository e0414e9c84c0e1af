"""The same samples with the same augmentation in every step, whatever the workers: by the trainer's public commands."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.recording import steps_seen
from tests.trainer_command import TRAINER, succeed
from tests.workers import run_workers, train_here
from trainer.data.sampler import KeyedPermutation

# Four samples for the last step of an epoch: one for each of four workers.
SAMPLES, GLOBAL_BATCH, EPOCHS = 22, 6, 2
LAUNCHER = [TRAINER[0], "-m", "launcher", "run"]


def overrides(folder: Path) -> list[str]:
    return [
        "data._target_=tests.data.recording.build",
        f"data.args.count={SAMPLES}",
        "data.augment=none",
        "model._target_=tests.data.recording.Witness",
        f"model.args={{folder: {folder}}}",
        f"global_batch_size={GLOBAL_BATCH}",
        f"epochs={EPOCHS}",
        "seed=5",
        "tracking=none",
        "device=cpu",
        "precision=fp32",
        "optim.lr=0.01",
        f"run.dir={folder}",
        "run.name=r",
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[float]]]:
    """What one process that loads by itself sees."""
    folder = tmp_path_factory.mktemp("alone")
    succeed(TRAINER, *overrides(folder), "data.workers=0")
    return steps_seen(folder)


def test_a_step_covers_its_stretch_of_the_epochs_permutation(alone: list[list[list[float]]]) -> None:
    expected = []
    for epoch in range(EPOCHS):
        order = KeyedPermutation(SAMPLES, seed=5, epoch=epoch)(np.arange(SAMPLES)).tolist()
        expected += [order[start : start + GLOBAL_BATCH] for start in range(0, SAMPLES, GLOBAL_BATCH)]
    assert [[int(row[0]) for row in step] for step in alone] == expected


def test_draws_of_all_generators_belong_to_sample_and_epoch(alone: list[list[list[float]]]) -> None:
    draws = np.array([row[1:] for step in alone for row in step])
    assert draws.shape == (SAMPLES * EPOCHS, 4)
    # No two samples, and no sample in two epochs, had the same of a generator; mean values of a picture may agree.
    for column in draws.T[:3]:
        assert len(set(column.tolist())) == len(column)
    assert len(set(draws.T[3].tolist())) > SAMPLES


@pytest.mark.parametrize(
    "command",
    [
        [*LAUNCHER, "cluster.gpus_per_node=4", "data.workers=0", "micro_batch_size=1"],
        [*TRAINER, "data.workers=2", "micro_batch_size=4"],
    ],
    ids=["four workers that load by themselves", "two loading processes"],
)
def test_every_step_sees_the_same_in_the_same_order(
    command: list[str], alone: list[list[list[float]]], tmp_path: Path
) -> None:
    succeed(command, *overrides(tmp_path))
    assert steps_seen(tmp_path) == alone


@pytest.mark.parametrize(("world_size", "workers", "micro_batch"), [(2, 2, 2), (3, 1, 1), (3, 0, 2)])
def test_every_step_sees_the_same_at_other_world_sizes(
    world_size: int, workers: int, micro_batch: int, alone: list[list[list[float]]], tmp_path: Path
) -> None:
    further = [f"data.workers={workers}", f"micro_batch_size={micro_batch}"]
    run_workers(world_size, train_here, [*overrides(tmp_path), *further])
    assert steps_seen(tmp_path) == alone


def test_a_run_that_goes_on_with_more_workers_goes_on_in_the_same_order(
    alone: list[list[list[float]]], tmp_path: Path
) -> None:
    places = [tmp_path / "first", tmp_path / "second"]
    for place, world_size, stop_after in zip(places, (2, 3), (3, None), strict=True):
        place.mkdir()
        further = [f"model.args={{folder: {place}}}", "data.workers=1"]
        run_workers(world_size, train_here, [*overrides(tmp_path), *further], stop_after)
    assert steps_seen(places[0]) + steps_seen(places[1]) == alone
    said = (tmp_path / "r" / "said-0.txt").read_text()
    assert "begun with 2 x 3 images at once, goes on with 3 x 2: the samples and their order are the same" in said
