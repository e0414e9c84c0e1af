"""What the command says before anything starts."""

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import HELP, VERBS, main
from launcher.completion.candidates import options_of
from tests.launcher.conftest import ROOT
from trainer.rundir import RunDir, write_json


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "mine.py").write_text("raise SystemExit('must not run')\n")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], ()),
        (["--version"], ()),
        (["rnu"], ()),
        *((([verb, "--help"]), ()) for verb in VERBS),
        (["run", "recipe=digits", "--dry-run"], ("hydra", "omegaconf")),
        (["config", "show", "recipe=digits"], ("hydra", "omegaconf")),
        (["config", "explain", "optim.lr"], ("hydra", "omegaconf")),
        (["completion", "reply", "fish", "run", "model.name="], ()),
    ],
)
def test_nothing_heavy_is_imported_to_look_or_to_plan(arguments: list[str], allowed: tuple[str, ...]) -> None:
    heavy = [name for name in ("torch", "numpy", "wandb", "hydra", "omegaconf", "rich") if name not in allowed]
    script = (
        f"import sys; from launcher.cli import main; main({arguments!r}); "
        f"sys.stdout.flush(); print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_fits_on_a_screen_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "--help")
    assert (code, out, err) == (0, HELP + "\n", "")
    lines = HELP.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert all(f"\n  {verb} " in HELP for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_fits_on_a_screen_too_and_begins_with_how_it_is_called(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capsys, verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"paceline {verb}")
    assert out.count(f"paceline {verb}") > 1 or verb == "completion"
    assert len(out.splitlines()) <= 24
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"run", "submit", "stop", "completion"}))
def test_what_reads_can_be_asked_for_json_and_what_lists_for_names_alone(verb: str) -> None:
    options = {option.name for option in options_of(verb)}
    assert "--json" in options
    # A replay names nothing but its verdict.
    assert "-q" in options or verb == "replay"


def test_names_alone_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "config", "recipe", "-q") == (
        0,
        "recipe=digits\nrecipe=fashion_mnist\nrecipe=finetune\nrecipe=synthetic\n",
        "",
    )
    assert "optim.lr\n" in said(capsys, "config", "optim", "-q")[1]
    assert "optim.lr\n" in said(capsys, "config", "show", "recipe=digits", "-q")[1]
    assert said(capsys, "config", "explain", "optim.lr", "optim.lr=0.5", "-q") == (0, "0.5\n", "")
    assert said(capsys, "config", "diff", "recipe=digits", "recipe=digits epochs=99", "-q") == (0, "epochs\n", "")
    found = json.loads(said(capsys, "doctor", "--quick", "--json")[1])["findings"]
    names = [finding["name"] for finding in found if finding["state"] in ("warn", "fail")]
    assert said(capsys, "doctor", "--quick", "-q")[1].splitlines() == names


def test_version_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "--version")
    assert code == 0
    assert out.startswith("paceline ")
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["start", "a=1"], 2, ["unknown command 'start'. Did you mean run?", "paceline run a=1\n"]),
        (["train", "--epochs", "3", "--lr=.1"], 2, ["Did you mean run?", "paceline run epochs=3 optim.lr=.1\n"]),
        (["--epochs", "3", "x=1"], 2, ["keys are set without dashes", "paceline run epochs=3 x=1\n"]),
        (["run", "--epochs", "3", "recipe=digits"], 2, ["without dashes", "paceline run epochs=3 recipe=digits\n"]),
        (["run", "--model", "resnet18", "--dry-run"], 2, ["paceline run model.name=resnet18 --dry-run\n"]),
        (["run", "--frobnicate", "3"], 2, ["unknown option --frobnicate\n", "paceline run --help"]),
        (["run", "--resume"], 2, ["again goes on from the last checkpoint by itself"]),
        (["run", "epochs", "3"], 2, ["'epochs' is no override", "paceline run epochs=3\n"]),
        (["run", "--fp16"], 2, ["precision may be meant", "paceline config explain precision\n"]),
        (["run", "--warmup-epochs", "5"], 2, ["paceline config explain optim.warmup_fraction\n"]),
        (["run", "warmup_epochs=5"], 2, ["paceline config explain optim.warmup_fraction` says"]),
        (["evaluate", "runs/x"], 2, ["python -m trainer.evaluate runs/x\n"]),
        (["order"], 2, ["python -m trainer.data.order RUN --step STEP\n"]),
        (["resume", "x", "epochs=3"], 2, ["there is no run 'x' in runs"]),
        (["resume"], 2, ["paceline status lists the runs"]),
        (["rnu"], 2, ["Did you mean run?"]),
        (["recipe=digits"], 2, ["Did you mean run recipe=digits?"]),
        (["frobnicate"], 2, ["unknown command 'frobnicate'\n"]),
        (["run", "--dryrun"], 2, ["unknown option --dryrun. Did you mean --dry-run?"]),
        (["run", "optim.lrr=0.1"], 2, ["optim.lrr. Did you mean optim.lr?"]),
        (["run", "epochs=abc"], 2, ["epochs"]),
        (["run", "epochs", "=", "3"], 2, ["blanks around the '=' of epochs", "paceline run epochs=3\n"]),
        (["run", "word"], 2, ["'word' is no override", "for example epochs=3"]),
        (["run", "data._target_=mine.build"], 2, ["mine.py has no build"]),
        (["run", "data._target_=absent.build"], 2, ["there is no module absent", "working directory"]),
        (["run", "data.root=."], 2, ["it holds only", "mine.py", "/CLASS/"]),
        (["run", "recipe=digits", "data.args.size=3"], 2, ["data.args does not fit data.name=digits"]),
        (["run", "recipe=digits", "data.limit=1"], 2, ["fewer training images than the 2 workers", "data.limit=2"]),
        (["run", "mine.py"], 2, ["paceline run -- mine.py"]),
        (["run", "--"], 2, ["nothing stands behind --"]),
        (["run", "--", "absent.py"], 2, ["no such script: absent.py"]),
        (["run", "--", "-m"], 2, ["-m needs the name of a module"]),
        (["run", "--", "-m", "trainer", "epochs=1"], 2, ["starts our trainer by itself", "paceline run epochs=1"]),
        (["run", "cluster.nodes=0", "--", "mine.py"], 2, ["cluster.nodes=0 is out of range"]),
        (["run", "run.name=a/b", "--", "mine.py"], 2, ["run.name='a/b' has a path separator"]),
        (["run", "cluster.port=70000", "--", "mine.py"], 2, ["cluster.port=70000 is out of range"]),
        (["run", "cluster.max_restarts=-1", "--", "mine.py"], 2, ["cluster.max_restarts=-1 is out of range"]),
        (["run", "device=gpu", "--", "mine.py"], 2, ["device=gpu is not a choice"]),
        (["run", "device=cuda", "--", "mine.py"], 3, ["device=cuda, but no GPU is visible", "device=cpu"]),
    ],
)
def test_a_mistake_is_told_in_a_few_lines_with_its_remedy_and_starts_nothing(
    arguments: list[str], code: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    actual, out, err = said(capsys, *arguments)
    assert actual == code
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("nothing was started\n")
    assert len(err.splitlines()) <= 4
    assert all(word in err for word in words)
    assert "Traceback" not in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("run recipe=digits epochs = 3", "run recipe=digits epochs=3"),
        ("run recipe=digits epochs =3", "run recipe=digits epochs=3"),
        ("run recipe=digits epochs= 3", "run recipe=digits epochs=3"),
        ("run 'recipe=finetune data.root=photos'", "run recipe=finetune data.root=photos"),
        ("run data.root=photso", "run data.root=photos"),
        ("run recipe=digits checkpoint.every=5minutes", "run recipe=digits checkpoint.every=5m"),
        ("run recipe=digits cluster.hang_timeout='2 min'", "run recipe=digits cluster.hang_timeout=2m"),
        ("run recipe=digits max_time=90m", "run recipe=digits max_time=01:30:00"),
        ("run recipe=digits model.args.widht=8", "run recipe=digits model.args.width=8"),
        ("run data_root=photos", "run data.root=photos"),
        ("run recipe=digits model=resnet34", "run recipe=digits model.name=resnet34"),
        ("run recipe=digits optim.name=admaw", "run recipe=digits optim.name=adamw"),
        ("run recipe=digits precision=half", "run recipe=digits precision=fp16"),
        ("run recipe=digits precision=half optim.name=admaw", "run recipe=digits precision=fp16 optim.name=adamw"),
        ("run recipe=digts +epoch=3", "run recipe=digits +epoch=3"),
        ("run recipe=digits +epoch=3", "run recipe=digits epochs=3"),
        ("run recipe=digits evaluate.every=epochs", "run recipe=digits evaluate.every=epoch"),
        ("run recipe=digits epochs:3", "run recipe=digits epochs=3"),
        ("run recipe=digits optim.step_epochs=1,2", "run recipe=digits 'optim.step_epochs=[1,2]'"),
        ("run -c own recipe=mine", "run recipe=mine --config-dir own"),
        ("run recipe=digits --resume run.name=x", "run recipe=digits run.name=x"),
        ("run -c job recipe=digits", "config show recipe=digits"),
        ("run mine.py --lr 0.1", "run -- mine.py --lr 0.1"),
        ("train mine.py --lr 0.1", "run -- mine.py --lr 0.1"),
        ("run --dryrun -- mine.py", "run --dry-run -- mine.py"),
        ("run -- --detach mine.py", "run --detach -- mine.py"),
        ("mine.py --lr 0.1", "run -- mine.py --lr 0.1"),
        ("run --nproc_per_node 4 mine.py --lr 0.1", "run cluster.gpus_per_node=4 -- mine.py --lr 0.1"),
        ("run -- python -u mine.py --lr 0.1", "run -- mine.py --lr 0.1"),
        ("run -- .venv/bin/python3.11 -m mine --lr 0.1", "run -- -m mine --lr 0.1"),
        ("run -- torchrun --standalone --nproc-per-node 4 mine.py", "run cluster.gpus_per_node=4 -- mine.py"),
        ("run -- mnie.py --lr 0.1", "run -- mine.py --lr 0.1"),
        ("run recipe=digits -- --dry-run", "run recipe=digits --dry-run"),
        ("run cluster.gpus_per_node=4 optim.lr=0.1 -- mine.py lr=1", "run cluster.gpus_per_node=4 -- mine.py lr=1"),
        ("run recipe=digits -- mine.py", "run -- mine.py"),
        ("run recipe=digits --dryrun", "run recipe=digits --dry-run"),
    ],
)
def test_the_suggested_command_is_the_one_that_works(
    arguments: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in "ab":
        Path("photos", label).mkdir(parents=True)
        Path("photos", label, "1.png").touch()
    Path("own", "recipe").mkdir(parents=True)
    Path("own", "recipe", "mine.yaml").write_text("# @package _global_\ndefaults: [override /data: digits]\n")
    code, out, err = said(capsys, *shlex.split(arguments))
    assert (code, out) == (2, "")
    suggested = shlex.split(next(line for line in err.splitlines()[1:] if "paceline" in line))
    assert shlex.split(command) == suggested[1:]
    if "+epoch=3" in command or suggested[1] != "run":
        return
    dry = suggested[1:] if "--dry-run" in suggested else ["run", "--dry-run", *suggested[2:]]
    code, _, err = said(capsys, *dry)
    assert (code, err) == (0, "")


def test_a_sweep_is_the_whole_command_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--dry-run"], ["-m"], ["--multirun"]):
        _, _, err = said(capsys, "run", "recipe=digits", "optim.lr=1e-3,1e-2", *option)
        assert err.splitlines()[1].endswith("python -m trainer --multirun recipe=digits optim.lr=1e-3,1e-2")


def test_a_run_that_is_only_named_goes_on_as_it_was_begun(capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(Path("runs", "x"))
    write_json(run.job, {"argv": ["paceline", "run", "recipe=digits", "epochs=3"]})
    code, out, err = said(capsys, "run", "run.name=x", "--dry-run")
    assert code == 0
    assert "-m trainer recipe=digits epochs=3 run.name=x\n" in out
    assert "as it was begun: " in err
    assert "recipe=digits epochs=3 run.name=x" in err
    assert "needs data.root" in said(capsys, "run", "run.name=y")[2]
    write_json(run.job, {"argv": ["paceline", "run", "recipe=digits", "data.args={token: ***}"]})
    assert "needs data.root" in said(capsys, "run", "run.name=x")[2]


def test_who_wants_to_resume_a_run_is_given_the_command_that_began_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "runs" / "x")
    write_json(run.job, {"argv": ["paceline", "run", "recipe=digits", "run.fresh=true", "--", "mine.py", "--lr", "1"]})
    assert "paceline run recipe=digits run.name=x -- mine.py --lr 1\n" in said(capsys, "resume", "x")[2]
    told = said(capsys, "resume", "x", "epochs=3", "cluster.max_restarts=1")[2]
    assert "paceline run recipe=digits run.name=x cluster.max_restarts=1 -- mine.py --lr 1 epochs=3\n" in told
    assert "paceline run recipe=digits run.name=x -- mine.py --lr 1\n" in said(capsys, "train", "x")[2]
    code, _, err = said(capsys, "run", "--dry-run", "x")
    assert (code, err.splitlines()[0]) == (2, "error: 'x' is a run, and no override")
    assert err.splitlines()[1].endswith("paceline run --dry-run run.name=x")
    write_json(run.job, {"argv": ["/there/trainer/__main__.py", "recipe=digits", "run.fresh=true"]})
    assert "python -m trainer recipe=digits run.name=x\n" in said(capsys, "resume", "x")[2]
    assert "-m trainer recipe=digits run.name=x\n" in said(capsys, "run", "run.name=x", "--dry-run")[1]


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, "run", "--debug", "optim.lrr=0.1")
    assert code == 2
    assert "Traceback" in err
    assert "--debug" not in err.splitlines()[-1]


def test_dry_run_shows_workers_command_and_environment_without_secrets_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "do-not-show-me")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code, out, _ = said(
        capsys, "run", "cluster.gpus_per_node=3", "run.name=x", "--dry-run", "--", "mine.py", "--lr", "1"
    )
    assert code == 0
    assert "workers      3" in out
    assert "torchrun --standalone --nproc-per-node=3 mine.py --lr 1" in out
    assert "runs/x, attempt 0" in out
    environment = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert environment["SOME_API_KEY"].split(maxsplit=1)[1] == "set, not shown  (you)"
    assert environment["NCCL_DEBUG"].split(maxsplit=1)[1] == "INFO  (you)"
    assert "for 3 workers" in environment["OMP_NUM_THREADS"]
    assert "do-not-show-me" not in out
    assert not Path("runs").exists()


def test_a_busy_rendezvous_port_is_named_before_anything_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = said(capsys, "run", f"cluster.port={port}", "run.name=x", "--", "mine.py")
    assert code == 3
    assert f"cluster.port={port} is in use" in err
    assert "cluster.port=null" in err
    assert not Path("runs").exists()


@pytest.mark.parametrize("room", [0, 4 * 1024])
def test_a_full_disk_at_the_start_is_exit_3_and_no_attempt(
    room: int, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="space"):
        filler.write_bytes(bytes(1 << 20))
    with filler.open("r+b") as stream:
        stream.truncate(filler.stat().st_size - room)
    code, _, err = said(capsys, "run", f"run.dir={small_disk}", "run.name=x", "--", "mine.py")
    assert code == 3
    assert f"cannot write the run directory {small_disk}/x: its disk is full" in err
    assert not (small_disk / "x" / "logs" / "attempt-0").exists()


def test_a_read_only_place_is_exit_3_with_another_to_try(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, _, err = said(capsys, "run", f"run.dir={small_disk}/deep/er", "--", "mine.py")
    assert code == 3
    assert "read-only file system" in err
    assert "run.dir=" in err


@pytest.mark.parametrize("directory", ["mine.py", "mine.py/below"])
def test_a_file_in_the_way_of_the_run_directory_is_exit_3(directory: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, "run", f"run.dir={directory}", "--", "mine.py")
    assert code == 3
    assert "is a file" in err


def test_config_shows_explains_lists_and_compares(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "config", "show", "optim.lr=0.25", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["config"]["optim"]["lr"] == 0.25
    assert "lr: 0.25" in said(capsys, "config", "show", "optim.lr=0.25")[1]
    assert "optim.lr = 0.25" in said(capsys, "config", "explain", "optim.lr", "optim.lr=0.25")[1]
    assert "optim.lr" in said(capsys, "config", "optim")[1]
    assert "optim.lr" in said(capsys, "config", "diff", "optim.lr=0.25", "optim.lr=0.5")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain"], "paceline config explain optim.lr"),
        (["explain", "optim.lrr"], "optim.lr"),
        (["diff", "one"], "needs two"),
        (["shwo", "epochs=1"], "paceline config show epochs=1"),
        (["no_such_group"], "no_such_group"),
    ],
)
def test_a_mistake_in_a_question_is_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capsys, "config", *arguments)
    assert (code, out) == (2, "")
    assert words in err
