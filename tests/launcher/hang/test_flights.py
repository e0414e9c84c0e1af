"""Records of collectives as torch writes them, read as data and compared."""

import os
import pickle
import select
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.hang import flights
from launcher.hang.flights import Collective
from tests.workers import run_workers
from trainer.distributed import World


def be_behind(world: World, folder: Path) -> None:
    dist.all_reduce(torch.ones(2))
    ahead = begin() if world.rank == 0 else None
    record = torch._C._distributed_c10d._dump_fr_trace(includeCollectives=True, onlyActive=False)  # type: ignore[attr-defined]
    (folder / f"flight-rank-{world.rank}").write_bytes(record)
    (ahead or begin()).wait()


def begin() -> dist.Work:
    work = dist.all_reduce(torch.ones(3), async_op=True)
    assert work is not None
    return work


def test_a_rank_that_has_not_begun_a_collective_is_found_in_the_records_of_real_ranks(tmp_path: Path) -> None:
    os.environ["TORCH_FR_BUFFER_SIZE"] = "100"
    try:
        run_workers(2, be_behind, tmp_path)
    finally:
        del os.environ["TORCH_FR_BUFFER_SIZE"]
    records = {rank: flights.read(tmp_path / f"flight-rank-{rank}") for rank in range(2)}
    behind, said = flights.compare(records)
    assert behind == [1]
    begun, _, last = said.partition("; the last before it: ")
    assert "all_reduce[[3]] at " in begun
    assert begun.endswith(" in begin")
    assert "all_reduce[[2]] at " in last
    assert last.endswith(" in be_behind")


def test_ranks_that_call_different_collectives_are_told_with_both_places() -> None:
    other = Collective("0", 2, "nccl:barrier[[]]", "train.py:9 in save")
    records = {0: [reduced(1), reduced(2)], 1: [reduced(1), other], 2: [reduced(1), reduced(2)]}
    behind, said = flights.compare(records)
    assert (behind, said) == (
        [],
        "collective 2 of group 0 differs: ranks 0, 2: nccl:all_reduce[[2]] at train.py:8 in main; "
        "rank 1: nccl:barrier[[]] at train.py:9 in save",
    )


def reduced(number: int, place: str = "train.py:8 in main") -> Collective:
    return Collective("0", number, "nccl:all_reduce[[2]]", place)


def test_a_rank_that_has_not_begun_what_the_others_wait_in_is_behind() -> None:
    records = {rank: [reduced(1), reduced(2)] for rank in range(4)}
    records[2] = [reduced(1, "train.py:5 in warm_up")]
    behind, said = flights.compare(records)
    assert behind == [2]
    assert said.startswith("rank 2 did not begin collective 2 of group 0, nccl:all_reduce[[2]] at train.py:8 in main")
    assert "the last before it: nccl:all_reduce[[2]] at train.py:5 in warm_up" in said
    assert flights.compare({0: [reduced(1)], 1: [reduced(1)]}) == ([], "")
    assert flights.compare({}) == ([], "")


def test_a_record_is_data_nothing_in_it_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    file = tmp_path / "flight-rank-0"
    file.write_bytes(pickle.dumps({"entries": [Evil()]}))
    assert flights.read(file) == []
    assert not (tmp_path / "executed").exists()
    file.write_bytes(b"torn")
    assert flights.read(file) == []
    assert flights.read(tmp_path / "none") == []


def test_a_recorder_is_asked_through_its_pipe_and_one_that_is_not_there_costs_no_time(tmp_path: Path) -> None:
    recorder = flights.FlightRecorder(tmp_path)
    before = dict(os.environ)
    try:
        recorder.join()
        pipe = f"{os.environ['TORCH_NCCL_DEBUG_INFO_PIPE_FILE']}0.pipe"
        target = Path(f"{os.environ['TORCH_FR_DUMP_TEMP_FILE']}0")
    finally:
        os.environ.clear()
        os.environ.update(before)
    recorder.dump([0, 1])
    assert flights.kept(tmp_path, [0, 1]) == {}
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    if not (child := os.fork()):
        select.select([reader], [], [])
        if os.read(reader, 2) == b"1\n":
            entry = {"frames": [], "process_group": ("0", "default_pg"), "collective_seq_id": 4, "is_p2p": False}
            target.write_bytes(pickle.dumps({"entries": [{**entry, "profiling_name": "x", "input_sizes": [[2]]}]}))
        os._exit(0)
    recorder.dump([0, 1])
    os.waitpid(child, 0)
    os.close(reader)
    assert flights.kept(tmp_path, [0, 1, 2]) == {0: [Collective("0", 4, "x[[2]]", "an unknown place")]}
    recorder.close()
    assert not Path(pipe).exists()
