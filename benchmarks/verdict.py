"""What it takes to judge a job whose every rank has failed: from the ranks' error files to the panel.

    python benchmarks/verdict.py [--json] [--ranks 4096] [--rounds 5]

One rank has an error of its own, some the same one, all others hear of it through gloo or NCCL, each with a traceback
of 4 kB. Paceline reads every file, finds the first error by cause, folds the rest and renders the panel; torchrun's
`ChildFailedError` reads as many and takes the earliest. A ratio is the share of the 2 seconds that it may take, the
median of the rounds, in which they take turns; what merely reading the files takes is shown beside them.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import report
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from launcher import verdict
from launcher.ending import folding
from launcher.workers import error_file
from trainer.rundir import RunDir, error_beside

ALLOWED_S = 2.0
TRACEBACK = "".join(f'  File "train.py", line {n}, in step\n    loss = model(images)\n' for n in range(80))
ECHOES = (
    ("RuntimeError", "[/pytorch/gloo/transport/tcp/pair.cc:545] Read error [10.0.0.{}]:4{}: Connection reset by peer"),
    ("DistBackendError", "NCCL error: remote process exited or there was a network error, NCCL version 2.27.5 {} {}"),
)


def lay_out(run: RunDir, ranks: int) -> None:
    """Writes the error file of every rank, ours and torchrun's in one."""
    for rank in range(ranks):
        kind, message = ("ValueError", "bad value") if rank % 64 == 17 else ECHOES[rank % 2]
        now = 1.8e9 + (rank * 7919 % ranks) / ranks
        row = {
            "host": f"node-{rank // 8}",
            "time": now,
            "type": kind,
            "message": message.format(rank % 256, rank),
            "place": "train.py:80 in step",
            "traceback": TRACEBACK,
        }
        path = error_beside(run.log(0, rank))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
        extra = {"py_callstack": TRACEBACK, "timestamp": str(int(now))}
        path.with_suffix(".torch").write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))


def paceline(run: RunDir, ranks: int) -> str:
    exits = [error_file.exit_of(run.log(0, rank), rank, 1) for rank in range(ranks)]
    first = verdict.first_failure(exits)
    assert first is not None
    code = verdict.exit_code(exits)
    row = verdict.failure_row(first, attempt=0, code=code, log=str(run.log(0, first.rank)), ours=True)
    row["others"] = folding.line(folding.fold(exits, first))
    return verdict.panel(row, again="paceline run", ours=True)


def torchrun(run: RunDir, ranks: int) -> str:
    failures = {
        rank: ProcessFailure(rank, rank, 1, str(error_beside(run.log(0, rank)).with_suffix(".torch")))
        for rank in range(ranks)
    }
    return ChildFailedError("train.py", failures).format_msg()


def reading(run: RunDir, ranks: int) -> str:
    for rank in range(ranks):
        json.loads(error_beside(run.log(0, rank)).read_bytes())
    return ""


CONTESTANTS: dict[str, Callable[[RunDir, int], str]] = {"paceline": paceline, "torchrun": torchrun, "reading": reading}


def main() -> int:
    """Prints the figures, or one JSON object; returns 0 whatever they are."""
    parser = report.parser(__doc__)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(folder)
        lay_out(run, options.ranks)
        for _ in range(options.rounds):
            for name, judge in CONTESTANTS.items():
                begin = time.perf_counter()
                judge(run, options.ranks)
                seconds[name].append(time.perf_counter() - begin)
        shown = paceline(run, options.ranks)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    report.show(
        options,
        benchmark="verdict",
        ratio=medians["paceline"] / ALLOWED_S,
        goal=1.0,
        rivals={name: value / ALLOWED_S for name, value in medians.items() if name != "paceline"},
        ranks=options.ranks,
        seconds=medians,
        panel=shown.splitlines(),
        packages=("torch",),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
