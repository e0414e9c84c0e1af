"""The tab key: what it offers, and that real shells take it."""

import os
import pty
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.cli import VERBS, main
from launcher.completion.candidates import SHELLS, candidates, options_of
from launcher.completion.overrides import FOLDERS
from launcher.completion.reply import reply
from trainer.config.keys import leaves
from trainer.rundir import RunDir, write_json

LINES = {
    "paceline sta": "status",
    "paceline logs --fol": "logs --follow",
    "paceline run recipe=fin": "run recipe=finetune",
    "paceline run model.name=small_r": "run model.name=small_resnet",
    "paceline run recipe=digits deterministic=t": "run recipe=digits deterministic=true",
    "paceline run data.on_bad_image=sk": "run data.on_bad_image=skip",
    "paceline run run.name=first": "run run.name=first-try",
    "paceline stop fi": "stop first-try",
    "paceline logs first-try --rank ": "logs first-try --rank 3",
    "paceline config explain optim.wei": "config explain optim.weight_decay",
    "paceline run -- tra": "run -- train.py",
    "paceline run device=cpu -- train.py --weights ca": "run device=cpu -- train.py --weights cats.pt",
    "paceline run data.root=pho": "run data.root=photos of mine/",
    "paceline run data.root=photos\\ of\\ mine/c": "run data.root=photos of mine/cats/",
    "paceline run optim.wei\t0.1": "run optim.weight_decay=0.1",
}
"""What is typed before the tab key, and the words that the command then has."""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, state in (("first-try", "running"), ("second", "finished")):
        write_json(RunDir(Path("runs", name)).status, {"state": state})
    for rank in (0, 3):
        log = RunDir(Path("runs", "second" if rank == 0 else "first-try")).log(0, rank)
        log.parent.mkdir(parents=True)
        log.touch()
    Path("runs", "no-run").mkdir()
    Path("photos of mine", "cats").mkdir(parents=True)
    for name in ("train.py", "cats.pt", ".hidden"):
        Path(name).touch()


def offered(*words: str) -> list[str]:
    return [word.text for word in candidates(words)]


def test_every_verb_and_option_is_offered() -> None:
    assert offered("") == list(VERBS)
    assert offered("--") == ["--help", "--version"]
    for verb in VERBS:
        names = [option.name for option in options_of(verb)]
        assert offered(verb, "--") == [name for name in names if name.startswith("--")]
        assert "--help" in names
    assert {"--dry-run", "--detach", "--config-dir"} <= set(offered("run", "-"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "rec"], ["recipe="]),
        (["run", "opti"], ["optim=", "optim."]),
        (["run", "optim.lr"], ["optim.lr="]),
        (["run", "optim.lr=0.1", "optim.lr"], []),
        (["run", "+model.ar"], ["+model.args."]),
        (["run", "evaluate.patience="], ["evaluate.patience=null"]),
        (["run", "optim.lr="], []),
        (["run", "no.such="], []),
        (["run", "device=c"], ["device=cpu", "device=cuda"]),
        (["run", "optim=ada"], ["optim=adam", "optim=adamw"]),
        (["run", "model.name=resnet18", "model.weights=D"], ["model.weights=DEFAULT"]),
        (["run", "model.weights=ca"], ["model.weights=cats.pt"]),
        (["run", "run.dir=r"], ["run.dir=runs/"]),
        (["run", "--config-dir", ""], ["photos of mine/", "runs/"]),
        (["run", "--config-dir=ph"], ["--config-dir=photos of mine/"]),
        (["run", "--", ""], ["-m", "photos of mine/", "runs/", "train.py"]),
        (["run", "--", "train.py", "."], [".hidden"]),
        (["status", ""], ["first-try", "second"]),
        (["status", "first-try", ""], []),
        (["status", "--dir", "runs", "s"], ["second"]),
        (["status", "--dir=absent", ""], []),
        (["status", "runs/f"], ["runs/first-try/"]),
        (["stop", ""], ["first-try"]),
        (["diff", "second", ""], ["first-try"]),
        (["logs", "second", "--rank", ""], ["0"]),
        (["logs", "second", "--attempt", ""], ["0"]),
        (["config", "s"], ["show"]),
        (["config", "explain", "epo"], ["epochs"]),
        (["config", "show", "sec"], ["second"]),
        (["completion", ""], list(SHELLS)),
        (["frobnicate", ""], []),
    ],
)
def test_what_is_offered_fits_the_place(words: Sequence[str], expected: Sequence[str]) -> None:
    assert offered(*words) == list(expected)


def test_every_key_can_be_reached_section_by_section() -> None:
    found, open_ones = set(), [""]
    while open_ones:
        for text in offered("run", open_ones.pop()):
            (open_ones.append if text.endswith(".") else found.add)(text)
        open_ones = [text for text in open_ones if text not in ("model.args.", "optim.args.", "data.args.")]
    free = {f"{path}=" for path, key in leaves().items() if key.type is dict}
    assert {f"{path}=" for path in leaves()} - free <= found
    assert set(FOLDERS) <= leaves().keys()


def test_groups_of_the_users_own_are_offered() -> None:
    Path("own", "recipe").mkdir(parents=True)
    Path("own", "recipe", "mine.yaml").touch()
    assert offered("run", "--config-dir", "own", "recipe=m") == ["recipe=mine"]


def test_bash_gets_what_stands_behind_its_own_beginning_of_a_word() -> None:
    assert reply("bash", ["paceline run recipe=fin", "fin"]) == ["finetune"]
    assert reply("bash", ["paceline run recipe=", ""]) == ["digits", "fashion_mnist", "finetune", "synthetic"]
    assert reply("bash", ["paceline run data.root=pho", "pho"]) == ["photos\\ of\\ mine/"]
    assert reply("bash", ['paceline run "data.root=pho', "data.root=pho"]) == ["data.root=photos of mine/"]
    assert reply("bash", ["paceline status ", ""]) == ["first-try", "second"]
    assert reply("fish", ["run", "recipe=fin"]) == ["recipe=finetune"]
    assert reply("zsh", ["run", "optim.lr"]) == ["optim.lr=\tPeak learning rate"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "completion takes one shell\n"),
        (["fsh"], "no completion for 'fsh'. Did you mean fish?\n"),
        (["tcsh"], "no completion for 'tcsh'"),
    ],
)
def test_another_shell_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    program, out = Path(sys.executable).with_name("paceline"), tmp_path / "words"
    source = f"{program} completion fish | source" if shell == "fish" else f'eval "$({program} completion {shell})"'
    show = "$argv" if shell == "fish" else '"$@"'
    body = f"printf '<%s>' {show} >> {out}; echo >> {out}"
    rc = tmp_path / ".zshrc"
    function = f"function show; {body}; end" if shell == "fish" else f"show() {{ {body}; }}"
    rc.write_text(f"{source}\n{function}\n")
    command = {
        "bash": ["bash", "--noprofile", "--rcfile", str(rc), "-i"],
        "zsh": ["zsh", "-d", "-i"],
        "fish": ["fish", "--no-config", "-i", "-C", f"source {rc}"],
    }[shell]
    pid, terminal = pty.fork()
    if pid == 0:
        places = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        os.execvpe(command[0], command, {**places, "PATH": os.environ["PATH"], "TERM": "dumb", "LANG": "C.UTF-8"})
    try:
        for number, line in enumerate(LINES):
            # Then to the beginning of the line, where what shows the words is put before them.
            os.write(terminal, f"{line}\t\x01show \r".encode())
            _await_lines(terminal, out, number + 1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    shown = [line[1:-1].split("><") for line in out.read_text().splitlines()]
    assert [" ".join(words[1:]) for words in shown] == list(LINES.values())


def _await_lines(terminal: int, file: Path, count: int) -> None:
    deadline, seen = time.monotonic() + 30, ""
    while not file.exists() or file.read_text().count("\n") < count:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.02)[0]:
            seen += os.read(terminal, 1 << 16).decode(errors="replace")
