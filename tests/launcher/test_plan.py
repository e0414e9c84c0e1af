"""The plan, the count of cores, the verdict and the run's name: everything that is pure."""

import dataclasses
import signal
import time
from pathlib import Path

import pytest

from launcher.plan import (
    JobPlan,
    Program,
    Variable,
    again_command,
    plan_job,
    torchrun_command,
)
from launcher.restarts import Failed, is_crash_loop
from launcher.verdict import (
    Exit,
    exit_code,
    failure_row,
    first_failure,
    not_asked_for,
    panel,
    with_early_end,
    with_the_trainers_word,
)
from trainer.config import ClusterConfig, Config, RunConfig
from trainer.cores import cgroup_quota, count_cpus
from trainer.errors import STOPPED, ConfigError, UnfitError
from trainer.run import runname
from trainer.wording import command

SCRIPT = Program("script", "my train.py", ("--lr", "1"))
TRAINER = Program("trainer", "trainer")


def planned(
    *,
    gpus: int = 0,
    cpus: int = 8,
    program: Program = TRAINER,
    environment: dict[str, str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    port: int | None = None,
) -> JobPlan:
    config = Config(device=device, cluster=ClusterConfig(gpus_per_node=workers, port=port))
    overrides = ["recipe=digits", "run.fresh=true", "optim.args={a: 1}"]
    return plan_job(config, program=program, overrides=overrides, gpus=gpus, cpus=cpus, environment=environment or {})


@pytest.mark.parametrize(
    ("gpus", "asked", "device", "workers"),
    [
        (0, None, "auto", 2),
        (8, None, "auto", 8),
        (8, None, "cpu", 2),
        (8, 3, "cuda", 3),
        (0, 5, "auto", 5),
        (1, 4, "cpu", 4),
    ],
)
def test_workers_are_one_for_each_gpu_or_two_unless_asked_otherwise(
    gpus: int, asked: int | None, device: str, workers: int
) -> None:
    assert planned(gpus=gpus, workers=asked, device=device).workers_per_node == workers


@pytest.mark.parametrize(
    ("gpus", "asked", "device", "words"),
    [
        (0, None, "cuda", "no GPU is visible"),
        (2, 3, "auto", "only 2 GPUs are visible"),
        (1, 2, "cuda", "only 1 GPU is visible"),
    ],
)
def test_gpus_that_are_not_there_make_the_machine_unfit(gpus: int, asked: int | None, device: str, words: str) -> None:
    with pytest.raises(UnfitError, match=words):
        planned(gpus=gpus, workers=asked, device=device)


@pytest.mark.parametrize(("cpus", "workers", "threads"), [(8, 2, "4"), (9, 2, "4"), (1, 4, "1")])
def test_threads_are_the_cores_of_each_worker(cpus: int, workers: int, threads: str) -> None:
    values = {v.name: v.value for v in planned(cpus=cpus, workers=workers).environment}
    assert values["OMP_NUM_THREADS"] == threads


def test_a_users_own_thread_count_wins_and_is_marked_as_theirs() -> None:
    plan = planned(environment={"OMP_NUM_THREADS": "7", "HOME": "/x"})
    assert plan.environment == (Variable("OMP_NUM_THREADS", "7", "you"),)


def test_a_secret_is_in_no_plan_that_is_shown() -> None:
    plan = planned(environment={"WANDB_API_KEY": "hidden-value", "HF_ENDPOINT": "https://me:hidden-value@host"})
    assert Variable("WANDB_API_KEY", None, "you") in plan.environment
    assert "hidden-value" not in plan.to_json()


def test_a_plan_survives_its_way_to_the_agent() -> None:
    plan = planned(program=SCRIPT, environment={"NCCL_DEBUG": "INFO", "X_KEY": "abc"}, port=1234)
    assert JobPlan.from_json(plan.to_json()) == plan


def test_the_command_by_hand_can_be_pasted() -> None:
    plan = planned(program=SCRIPT, workers=2)
    assert torchrun_command(plan) == (
        f"OMP_NUM_THREADS=4 {command('torchrun')} --standalone --nproc-per-node=2 'my train.py' --lr 1"
    )
    assert torchrun_command(planned(port=1234)).endswith(
        "--rdzv-endpoint=127.0.0.1:1234 --nproc-per-node=2 -m trainer recipe=digits run.fresh=true 'optim.args={a: 1}'"
    )


def test_the_command_to_go_on_names_the_run_and_does_not_start_afresh() -> None:
    assert again_command(planned(), "x-2").endswith("paceline run recipe=digits 'optim.args={a: 1}' run.name=x-2")
    assert again_command(planned(program=SCRIPT), "x").endswith("run.name=x -- 'my train.py' --lr 1")


def test_a_cpu_quota_is_found_in_the_group_and_above_it(tmp_path: Path) -> None:
    assert count_cpus() >= 1
    membership = tmp_path / "cgroup"
    membership.write_text("4:cpu,cpuacct:/job/step\n0::/a/b\n")
    assert cgroup_quota(tmp_path, membership) is None
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/cpu.max").write_text("max 100000\n")
    assert cgroup_quota(tmp_path, membership) is None
    (tmp_path / "a/cpu.max").write_text("350000 100000\n")
    assert cgroup_quota(tmp_path, membership) == 3.5
    (tmp_path / "cpu/job").mkdir(parents=True)
    (tmp_path / "cpu/job/cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu/job/cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(tmp_path, membership) == 1.5


ECHO = Exit(0, 1, time=1.0, type="RuntimeError", message="[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
CAUSE = Exit(1, 1, time=1.2, type="ValueError", message="bad value")


def test_the_cause_is_found_although_its_echo_was_faster() -> None:
    assert first_failure([ECHO, CAUSE]) is CAUSE
    assert first_failure([ECHO]) is ECHO
    assert first_failure([Exit(0, 0), Exit(1, STOPPED)]) is None


def test_a_killed_worker_comes_before_what_the_others_say_but_an_abort_does_not() -> None:
    killed, aborted = Exit(1, -signal.SIGKILL), Exit(1, -signal.SIGABRT)
    assert first_failure([ECHO, killed]) is killed
    assert first_failure([aborted, CAUSE]) is CAUSE


def test_a_worker_that_ended_early_is_the_cause_of_echoes_but_of_no_error_of_their_own() -> None:
    first = first_failure(with_early_end([ECHO], [2, 1]))
    assert first is not None
    assert (first.rank, first.type, first.code) == (1, "EarlyExit", 1)
    assert first.message == "ranks 1, 2 ended with exit code 0 while rank 0 still had work to share"
    assert first_failure(with_early_end([ECHO, CAUSE], [2])) is CAUSE
    assert first_failure(with_early_end([ECHO], [])) is ECHO
    assert first_failure(with_early_end([], [0, 1])) is None


def test_what_the_trainer_wrote_counts_unless_it_is_an_echo() -> None:
    silent = [Exit(0, 1, time=1.0), Exit(1, 1, time=2.0)]
    row = {"rank": 1, "type": "ValueError", "message": "bad value", "traceback": "t", "advice": "mend it"}
    first = first_failure(with_the_trainers_word(silent, row))
    assert first is not None
    assert (first.rank, first.message, first.advice) == (1, "bad value", "mend it")
    echo = {"rank": 0, "type": ECHO.type, "message": ECHO.message}
    killed = Exit(1, -signal.SIGKILL)
    assert first_failure(with_the_trainers_word([silent[0], killed], echo)) is killed


SILENCE = Exit(
    0, 1, time=0.5, type="RuntimeError",
    message="[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 30000ms for recv",
)  # fmt: skip


def test_a_time_out_is_the_sign_of_a_worker_that_hangs_and_the_echo_of_none() -> None:
    # The one that was waited for gets to hear of the end of the one that gave up.
    assert first_failure([dataclasses.replace(ECHO, rank=1, time=0.1), SILENCE]) is SILENCE
    assert first_failure([SILENCE, CAUSE]) is CAUSE
    assert first_failure([SILENCE, Exit(1, -signal.SIGSEGV)]) == Exit(1, -signal.SIGSEGV)
    early = first_failure(with_early_end([SILENCE], [1]))
    assert early is not None
    assert (early.rank, early.type) == (1, "EarlyExit")
    row = failure_row(SILENCE, host="h", attempt=0, code=1, log="l")
    assert "did not answer in time" in row["meaning"]
    store = Exit(0, 1, type="DistStoreError", message="wait timeout after 300000ms, keys: /worker/1")
    assert store.is_silence
    assert not store.is_echo


def test_an_exit_code_without_a_word_is_told_as_that() -> None:
    row = failure_row(Exit(1, 7), host="h", attempt=0, code=1, log="l")
    assert (row["type"], row["message"]) == ("exit code 7", "the script ended with exit code 7")


def test_of_two_causes_the_earlier_wins() -> None:
    later = dataclasses.replace(CAUSE, rank=0, time=1.3)
    assert first_failure([later, CAUSE]) is CAUSE


@pytest.mark.parametrize(
    ("exit", "asked_for"),
    [
        (Exit(0, 0), True),
        (Exit(0, STOPPED), True),
        (Exit(0, -signal.SIGTERM), True),
        (Exit(0, 143, time=1.0, type="SystemExit"), True),
        (Exit(0, 1, time=1.0, type="KeyboardInterrupt"), True),
        (ECHO, True),
        (SILENCE, True),
        (CAUSE, False),
        (Exit(0, -signal.SIGABRT), True),
        (dataclasses.replace(ECHO, code=-signal.SIGABRT), True),
        (dataclasses.replace(CAUSE, code=-signal.SIGABRT), False),
        (Exit(0, -signal.SIGSEGV), False),
        (Exit(0, -signal.SIGKILL), False),
        (Exit(7, -signal.SIGKILL), True),
    ],
)
def test_what_a_request_to_stop_explains_and_what_it_does_not(exit: Exit, asked_for: bool) -> None:
    assert (not_asked_for([exit], killed=[7]) == []) is asked_for


@pytest.mark.parametrize(
    ("codes", "stopped_by", "code"),
    [
        ([0, 0], None, 0),
        ([75, 75], None, 75),
        ([0, 75], None, 75),
        ([75, 75], signal.SIGTERM, 75),
        ([0, 75], signal.SIGTERM, 75),
        ([0, 75, -15], signal.SIGTERM, 143),
        ([75, -9], signal.SIGINT, 130),
        ([0, 0], signal.SIGTERM, 0),
        ([], signal.SIGTERM, 143),
        ([], None, 1),
        ([2], None, 2),
        ([3], None, 3),
        ([124], None, 124),
        ([7], None, 1),
        ([-9], None, 137),
        ([-11], None, 139),
    ],
)
def test_the_exit_code_is_the_first_failures(codes: list[int], stopped_by: int | None, code: int) -> None:
    assert exit_code([Exit(rank, value) for rank, value in enumerate(codes)], stopped_by) == code


@pytest.mark.parametrize(
    ("checkpoints", "causes", "seconds", "loop"),
    [
        (["a", "a", "a"], "rst", 9000, True),
        (["a", "a"], "rr", 1, False),
        (["a", "b", "b"], "rrr", 1, False),
        (["a", "b", "b", "b"], "rrrr", 1, True),
        ([None, None, None], "rrr", 1, True),
        ([None, None, None], "rrs", 1, False),
        ([None, None, None], "rrr", 9000, False),
        ([None, None, "a"], "rrr", 1, False),
    ],
)
def test_a_crash_loop_is_three_failures_without_progress(
    checkpoints: list[str | None], causes: str, seconds: float, loop: bool
) -> None:
    history = [
        Failed((cause, "", ""), checkpoint, seconds) for checkpoint, cause in zip(checkpoints, causes, strict=True)
    ]
    assert is_crash_loop(history) is loop


def test_a_panel_says_each_thing_once() -> None:
    row = failure_row(CAUSE, host="node-1", attempt=2, code=1, log="runs/x/logs/attempt-2/rank-1.log")
    text = panel(row, again="paceline run run.name=x", ours=True)
    assert text.splitlines()[0] == "✗ failed: ValueError on rank 1, node-1"
    assert text.count("bad value") == 1
    assert "rank-1.log" in text
    assert "paceline run run.name=x" in text
    killed = failure_row(Exit(3, -signal.SIGKILL), host="h", attempt=0, code=137, log="l")
    assert panel(killed, again="", ours=False).count("SIGKILL") == 2
    ended = {**row, "type": "SystemExit", "message": "2", "log": "runs/a-2026/rank-0.log"}
    assert "runs/a-2026/rank-0.log" in panel(ended, again="paceline run cluster.gpus_per_node=2", ours=False)
    assert "cluster.gpus_per_node=2" in panel(ended, again="paceline run cluster.gpus_per_node=2", ours=False)
    assert killed["meaning"]


@pytest.mark.parametrize(
    ("code", "ours", "label"),
    [(1, True, "again"), (3, True, "then"), (2, True, ""), (2, False, "again"), (3, False, "again")],
)
def test_a_command_that_must_fail_again_is_not_offered(code: int, ours: bool, label: str) -> None:
    row = failure_row(CAUSE, host="n", attempt=0, code=code, log="l")
    last = panel(row, again="paceline run run.name=x", ours=ours).splitlines()[-1].split()
    assert last == ([label, "paceline", "run", "run.name=x"] if label else ["log", "l"])


NOW = time.struct_time((2026, 11, 23, 17, 12, 0, 0, 327, -1))


def test_an_unnamed_run_is_called_after_its_recipe_and_the_time_and_never_taken_twice(tmp_path: Path) -> None:
    run = RunConfig(dir=str(tmp_path))
    names = [runname.create(run, "vit/b 16", NOW).name for _ in range(3)]
    assert names == ["vit_b_16-1123-1712", "vit_b_16-1123-1712-2", "vit_b_16-1123-1712-3"]


def test_a_named_run_is_continued_and_a_fresh_one_lies_beside_it(tmp_path: Path) -> None:
    named = RunConfig(name="x", dir=str(tmp_path))
    fresh = dataclasses.replace(named, fresh=True)
    assert runname.create(named, "r").name == "x"
    (tmp_path / "x" / "kept").touch()
    assert runname.create(named, "r").name == "x"
    assert [runname.create(fresh, "r").name for _ in range(2)] == ["x-2", "x-3"]
    assert (tmp_path / "x" / "kept").exists()
    assert runname.choose(fresh, "r").name == "x-4"
    assert not (tmp_path / "x-4").exists()


@pytest.mark.parametrize("name", ["a/b", "../x", "", ".hidden", "-x", "x\n", "x" * 201])
def test_a_name_that_is_no_directory_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        runname.create(RunConfig(name=name, dir=str(tmp_path)), "r")
    assert list(tmp_path.iterdir()) == []
