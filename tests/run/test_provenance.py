"""What a run directory says about where a run came from: configuration, command line and code of every attempt."""

import subprocess
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import local, runs
from launcher.plan import Program, plan_job
from trainer.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, from_yaml
from trainer.errors import ConfigError, UnfitError
from trainer.run import history, launches, opening, provenance, repository
from trainer.run.rows import append_json_line
from trainer.rundir import RunDir, read_json, write_json


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit of `code/train.py`; `ignored` is ignored."""
    folder = tmp_path / "repository"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "train.py").write_text("print('one')\n")
    (folder / ".gitignore").write_text("ignored\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@e"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def begin(run: RunDir, config: Config, *, attempt: int = 0, argv: str = "first", folder: Path) -> dict[str, Any]:
    provenance.begin(run, config, attempt=attempt, argv=[argv], folder=folder, nodes=1, world_size=2)
    return read_json(run.job)


def test_the_code_is_the_scripts_and_a_file_that_git_does_not_know_is_a_change(checkout: Path, tmp_path: Path) -> None:
    # The test runs in another checkout, or in none.
    run = RunDir(checkout / "runs" / "x")
    code = begin(run, Config(), folder=checkout / "code")["code"]
    assert code["root"] == str(checkout)
    assert len(code["commit"]) == 40
    assert (code["dirty"], code["untracked"], code["diff"]) == (False, [], None)
    (checkout / "code" / "new.py").touch()
    (checkout / "ignored").touch()
    code = begin(run, Config(), folder=checkout / "code")["attempts"][0]["code"]
    assert (code["dirty"], code["untracked"], code["untracked_files"]) == (True, ["code/new.py"], 1)
    assert begin(RunDir(tmp_path / "y"), Config(), folder=tmp_path)["code"] is None


def test_every_attempt_is_kept_and_the_first_stays_what_it_was(checkout: Path, tmp_path: Path) -> None:
    run, script = RunDir(tmp_path / "runs" / "x"), checkout / "code" / "train.py"
    script.write_text("print('two')\n")
    begin(run, Config(), folder=checkout)
    assert "print('two')" in run.code_diff.read_text()
    script.write_text("print('three')\n")
    job = begin(run, Config(), attempt=1, argv="second", folder=checkout)
    assert job["argv"] == ["first"]
    assert [(row["attempt"], row["argv"]) for row in job["attempts"]] == [(0, ["first"]), (1, ["second"])]
    assert [row["code"]["diff"] for row in job["attempts"]] == ["code.diff", "logs/attempt-1/code.diff"]
    assert "print('two')" in run.code_diff.read_text()
    assert "print('three')" in run.attempt_code_diff(1).read_text()
    assert {"torch", "numpy"} <= job["packages"].keys()
    assert "packages" not in job["attempts"][1]


def test_what_has_become_of_the_code_is_told(checkout: Path, tmp_path: Path) -> None:
    run, script = RunDir(tmp_path / "runs" / "x"), checkout / "code" / "train.py"

    def told() -> list[str]:
        return list(repository.changes(run, noted))

    noted = begin(run, Config(), folder=checkout)["code"]
    assert told() == []
    script.write_text("print('two')\n")
    assert told() == ["code: what is not committed was nothing then, and is something else now"]
    noted = begin(run, Config(), attempt=1, folder=checkout)["attempts"][1]["code"]
    assert told() == []
    script.write_text("print('three')\n")
    assert told() == ["code: what is not committed was code.diff then, and is something else now"]
    identity = ["-c", "user.name=n", "-c", "user.email=e@e"]
    subprocess.run(["git", *identity, "commit", "-aqm", "second"], cwd=checkout, check=True)
    [line] = told()
    assert line.startswith(f"code: it was commit {noted['commit'][:12]} then")
    assert list(repository.changes(run, None)) == []


@pytest.mark.parametrize("saves", [False, True])
def test_a_config_yaml_that_cannot_be_read_is_an_error_that_names_it(saves: bool, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    begin(run, Config(), folder=tmp_path)
    if saves:
        run.update_status(latest="step-00000010")
    for content, problem in (
        (b"model: caf\xe9", "not text"),
        (b"optim: [", "not valid YAML"),
        (b"a: 1", "unknown key"),
    ):
        run.config.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"x/config\.yaml: {problem}") as refused:
            provenance.agree(run, Config())
        assert str(refused.value).count("\n") == 1
    run.config.unlink()
    run.config.mkdir()
    with pytest.raises(UnfitError, match=r"x/config\.yaml cannot be read: Is a directory"):
        provenance.agree(run, Config())


def test_config_yaml_is_what_the_run_computes(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    config = Config(run=RunConfig(fresh=True), optim=OptimConfig(lr=0.5))
    begin(run, config, folder=tmp_path)
    kept = from_yaml(run.config.read_text())
    assert (kept.run.name, kept.run.fresh, kept.optim.lr) == ("x", False, 0.5)
    begin(run, replace(config, data=DataConfig(workers=3)), attempt=1, folder=tmp_path)
    assert from_yaml(run.config.read_text()) == kept
    assert from_yaml(run.attempt_config(1).read_text()).data.workers == 3
    changed = replace(config, optim=OptimConfig(lr=0.25))
    run.update_status(latest="step-00000010")
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.5") as refused:
        provenance.agree(run, changed)
    assert "run.accept_changes=true" in refused.value.fix
    with pytest.raises(ConfigError, match=r"model\.name was 'resnet18'") as refused:
        provenance.agree(run, replace(config, model=ModelConfig(name="resnet34")))
    assert "run.accept_changes=true" not in refused.value.fix
    accepted = replace(changed, run=RunConfig(accept_changes=True))
    provenance.agree(run, accepted)
    begin(run, accepted, attempt=2, folder=tmp_path)
    assert from_yaml(run.config.read_text()).optim.lr == 0.5, "its model may yet be refused"
    provenance.confirm(run, accepted, attempt=2)
    assert from_yaml(run.config.read_text()).optim.lr == 0.25
    # What the earlier attempts computed with is still to be found.
    kept = [from_yaml(run.attempt_config(number).read_text()) for number in (0, 1)]
    assert [(config.optim.lr, config.data.workers) for config in kept] == [(0.5, Config().data.workers), (0.5, 3)]
    provenance.agree(run, changed)


def test_whoever_has_the_run_says_what_it_computes(tmp_path: Path) -> None:
    """The launcher of another job wrote its configuration there between this one's launcher and this one's worker."""
    run, mine = RunDir(tmp_path / "x"), Config(optim=OptimConfig(lr=0.5))
    run.path.mkdir()
    begin(run, mine, folder=tmp_path)
    begin(run, Config(optim=OptimConfig(lr=0.25)), attempt=1, folder=tmp_path)
    provenance.confirm(run, mine, attempt=0)
    assert from_yaml(run.config.read_text()).optim.lr == 0.5
    run.checkpoint(3).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"optim.lr was 0.5 and is now 0.25"):
        provenance.agree(run, Config(optim=OptimConfig(lr=0.25)))


@pytest.mark.parametrize("winner", [0, 1])
def test_job_json_ends_with_the_launch_that_has_the_run_whoever_wrote_it_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winner: int
) -> None:
    """Both launchers read the file before either has written it."""
    run, loser = RunDir(tmp_path / "x"), 1 - winner
    begin(run, Config(), attempt=winner, argv="winner", folder=tmp_path)
    run.job.unlink()
    begin(run, Config(), attempt=loser, argv="loser", folder=tmp_path)
    monkeypatch.setenv("PACELINE_RUN_DIR", str(run.path))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    opening.begin(run, Config(), attempt=winner + 2)
    job = read_json(run.job)
    assert [(row["attempt"], row["argv"]) for row in job["attempts"]] == [(loser, ["loser"]), (winner, ["winner"])]
    assert job["argv"] == (["winner"] if winner == 0 else ["loser"])
    assert history.setup_of(run, winner).attempt == winner
    before = run.job.stat().st_ino
    launches.confirm(run, winner)
    assert run.job.stat().st_ino == before
    # And the loser's launcher, if it is slow, does not make it the run's.
    begin(run, Config(), attempt=loser, argv="loser", folder=tmp_path)
    run.update_status(state="running", attempt=winner)
    assert (runs.look(run).attempt, runs.again(run)) == (winner, None)


def test_a_job_json_without_attempts_is_one_launch(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    begin(run, Config(), folder=tmp_path)
    for attempts in (None, [], "none", [None, {"attempt": "zero"}]):
        write_json(run.job, {"argv": ["old"], "host": "there", "attempts": attempts})
        assert run.launches() == [read_json(run.job)]
        assert runs.look(run).host == "there"
        assert history.setup_of(run, None).workers == 1
        job = begin(run, Config(), argv="new", folder=tmp_path)
        assert [row["argv"] for row in job["attempts"]] == [["new"]]


@pytest.mark.parametrize("trace", ["nothing", "status", "event", "folder"])
def test_only_a_run_that_has_saved_nothing_takes_another_configuration(tmp_path: Path, trace: str) -> None:
    run = RunDir(tmp_path / "x")
    begin(run, Config(), folder=tmp_path)
    run.update_status(state="failed")
    append_json_line(run.events, {"event": "start", "step": 0})
    if trace == "status":
        run.update_status(latest="step-00000010")
    if trace == "event":
        append_json_line(run.events, {"event": "checkpoint", "step": 10})
    if trace == "folder":
        run.checkpoint(10).mkdir(parents=True)
    changed = Config(optim=OptimConfig(lr=0.25))
    if trace == "nothing":
        provenance.agree(run, changed)
    else:
        with pytest.raises(ConfigError, match=r"optim\.lr was"):
            provenance.agree(run, changed)


def test_a_secret_reaches_the_workers_but_no_file_and_is_no_difference(tmp_path: Path) -> None:
    # Made here, since the uncommitted changes are kept, too, perhaps this file's among them.
    secret = uuid.uuid4().hex
    config = Config(run=RunConfig(name="x", dir=str(tmp_path)), data=DataConfig(args={"token": secret}))
    plan = plan_job(
        config, program=Program("trainer", "trainer"), overrides=[f"data.args={{token: {secret}}}"], gpus=0, cpus=1,
        environment={},
    )  # fmt: skip
    plan = local.prepare(plan, config, recipe="r", argv=["paceline", "run", f"data.args={{token: {secret}}}"])
    assert from_yaml(plan.config).data.args == {"token": secret}
    assert secret not in plan.again
    run = RunDir(tmp_path / "x")
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if secret in path.read_text()] == []
    provenance.agree(run, config)


def test_a_launcher_that_was_overtaken_leaves_the_other_ones_logs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(run=RunConfig(name="x", dir=str(tmp_path)), data=DataConfig(name="digits"))
    run = RunDir(tmp_path / "x")
    run.log(0, 0).parent.mkdir(parents=True)
    run.log(0, 0).write_text("the other job's")
    # It has looked before that one's folder was there.
    seen = iter([0])
    monkeypatch.setattr(RunDir, "next_attempt", lambda self: next(seen, 1))
    plan = plan_job(config, program=Program("trainer", "trainer"), overrides=[], gpus=0, cpus=1, environment={})
    assert local.prepare(plan, config, recipe="r", argv=["paceline", "run"]).attempt == 1
    assert run.log(0, 0).read_text() == "the other job's"


def test_an_attempt_that_never_began_does_not_say_where_the_data_are(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    run.path.mkdir()
    for attempt, root in enumerate(("/mine", "/moved", "/refused")):
        begin(run, Config(data=DataConfig(root=root)), attempt=attempt, folder=tmp_path)
        if root != "/refused":
            append_json_line(run.events, {"event": "start", "step": 0, "attempt": attempt})
    assert history.latest_config(run).data.root == "/moved"
