"""The console, on real pseudo-terminals and plain files."""

import io
import os
import pty
import re
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest
import rich.console

from tests.waiting import until
from trainer.terminal.console import Console, Progress, TerminalConsole, evaluation_line, open_console, progress_line

PROGRESS = Progress(
    step=234,
    total_steps=936,
    epoch=2,
    epochs=4,
    loss=0.4123,
    images_per_second=1930.2,
    data_wait_fraction=0.011,
    eta_s=94.0,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal:
    """A pseudo-terminal; `text` is everything that was written to it, `hang_up` ends it without reading."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream: TextIO = os.fdopen(slave, "w", buffering=1)
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    def read(self) -> None:
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self._master, 65536):
                self._parts.append(part)
        except OSError:
            return  # The other side is closed.

    def has_shown(self, text: str) -> bool:
        return text in b"".join(self._parts[-20:]).decode(errors="replace")

    def hang_up(self) -> None:
        os.close(self._master)

    def text(self) -> str:
        self.stream.close()
        self._reader.join(10)
        os.close(self._master)
        return b"".join(self._parts).decode()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")


@contextmanager
def on_terminal(log: Path | None = None, *, read: bool = True) -> Generator[tuple[Console, Terminal], None, None]:
    terminal = Terminal()
    if read:
        terminal.read()
    console = open_console(is_rank_zero=True, log=log, stream=terminal.stream)
    yield console, terminal
    console.close()


def off_terminal(log: Path | None = None, **more: Any) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return open_console(is_rank_zero=True, log=log, stream=stream, **more), stream


def say_everything(console: Console) -> None:
    console.say("data    Fashion-MNIST, 70,000 images [/bold] :smile:")
    console.progress(PROGRESS)
    console.warn("3 stray files")
    console.evaluation(epoch=1, step=234, metrics={"val/loss": 0.391, "val/accuracy": 0.859}, best=True)
    console.error("unknown key optim.lrr", "optim.lr")
    console.summary(["Done in 2 m 12 s"])
    console.close()


EVERYTHING = """\
data    Fashion-MNIST, 70,000 images [/bold] :smile:
  step 234/936  epoch 2/4  loss 0.412  1,930 images/s  data wait 1 %  ETA 1 m 34 s
warning: 3 stray files
  epoch 1  val accuracy 85.9 %  loss 0.391   best so far
error: unknown key optim.lrr
  optim.lr
  Done in 2 m 12 s
"""


def test_off_a_terminal_everything_is_a_plain_line() -> None:
    console, stream = off_terminal()
    say_everything(console)
    assert stream.getvalue() == EVERYTHING


@pytest.mark.parametrize("terminal", [True, False])
def test_the_log_file_has_all_that_was_said_without_colours(tmp_path: Path, terminal: bool) -> None:
    log = tmp_path / "logs" / "rank-0.log"
    if terminal:
        with on_terminal(log=log) as (console, _):
            say_everything(console)
    else:
        say_everything(off_terminal(log=log)[0])
    assert log.read_text() == EVERYTHING


def test_a_long_line_is_not_wrapped_off_a_terminal() -> None:
    console, stream = off_terminal()
    console.say("word " * 100)
    assert stream.getvalue().count("\n") == 1


def test_off_a_terminal_progress_comes_every_thirty_seconds_or_hundredth_whichever_is_rarer() -> None:
    clock = Clock()
    console, stream = off_terminal(clock=clock)

    def lines_of(total_steps: int, steps_per_second: float, seconds: int) -> int:
        before = stream.getvalue().count("\n")
        begin = clock.now
        for _ in range(seconds):
            clock.now += 1
            step = int((clock.now - begin) * steps_per_second)
            console.progress(replace(PROGRESS, step=step, total_steps=total_steps))
        return stream.getvalue().count("\n") - before

    # A fast run: every 30 s, although a hundredth takes one second.
    assert lines_of(total_steps=600, steps_per_second=2, seconds=300) == 10
    console, stream = off_terminal(clock=clock)
    # A slow one: every hundredth, 100 s, although 30 s pass more often.
    assert lines_of(total_steps=20_000, steps_per_second=2, seconds=300) == 3


def test_force_color_gives_colours_off_a_terminal_but_no_moving_cursor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console, stream = off_terminal()
    say_everything(console)
    text = stream.getvalue()
    assert re.findall(r"\x1b\[[0-9;]*m", text)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == EVERYTHING


def test_a_terminal_shows_one_live_line_and_the_rest_above_it() -> None:
    with on_terminal() as (console, terminal):
        console.progress(PROGRESS)
        console.say("a message")
        console.progress(replace(PROGRESS, step=300, loss=0.25, gpu_percent=87.4))
    text = terminal.text()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "━" in text
    assert "step 234/936" in plain
    assert "epoch 2/4  loss 0.412  1,930 images/s  data wait 1 %  ETA 1 m 34 s" in plain
    assert "step 300/936" in plain
    assert "loss 0.250  1,930 images/s  data wait 1 %  GPU 87 %  ETA 1 m 34 s" in plain
    assert plain.index("a message") < plain.index("step 300/936")
    # The live line was taken away and the cursor is shown again.
    assert text.rstrip().endswith(("\x1b[2K", "\x1b[?25h")) or "\x1b[?25h" in text[-60:]


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 100, 200])
def test_the_live_line_never_needs_two_lines(columns: int) -> None:
    from trainer.terminal.console import _live_line

    screen = rich.console.Console(width=columns, file=io.StringIO(), force_terminal=True)
    progress = replace(PROGRESS, total_steps=1_000_000, gpu_percent=99.0)
    lines = screen.render_lines(_live_line(progress, columns), pad=False)
    assert len(lines) == 1
    assert ("━" in "".join(segment.text for segment in lines[0])) == (columns >= 120)


@pytest.mark.parametrize("settings", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_terminal_without_abilities_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with on_terminal() as (console, terminal):
        say_everything(console)
    text = terminal.text()
    assert "\x1b" not in text
    assert text.replace("\r\n", "\n") == EVERYTHING


def test_no_color_means_no_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with on_terminal() as (console, terminal):
        say_everything(console)
    text = terminal.text()
    assert "warning: 3 stray files" in text
    assert not re.findall(r"\x1b\[[0-9;]*(?:3[0-8]|9[0-7]|4[0-8])[0-9;]*m", text)


def test_other_ranks_only_say_what_is_wrong_with_rank_and_host() -> None:
    stream = io.StringIO()
    console = open_console(is_rank_zero=False, log=None, rank=3, stream=stream)
    console.say("hello")
    console.progress(PROGRESS)
    console.evaluation(epoch=1, step=1, metrics={"val/loss": 1.0}, best=True)
    console.summary(["done"])
    console.warn("a bad image")
    console.error("no such GPU", "device=cpu")
    console.close()
    name = f"[rank 3 {socket.gethostname()}]"
    assert stream.getvalue() == f"{name} warning: a bad image\n{name} error: no such GPU\n{name}   device=cpu\n"


def test_another_rank_knows_its_number_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    stream = io.StringIO()
    open_console(is_rank_zero=False, log=None, stream=stream).warn("x")
    assert stream.getvalue().startswith("[rank 5 ")


def test_talk_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    open_console(is_rank_zero=True, log=None).say("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


class ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_reader_that_went_away_does_not_stop_the_run_nor_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    console = open_console(is_rank_zero=True, log=log, stream=ClosedPipe())
    say_everything(console)
    assert log.read_text() == EVERYTHING


def test_a_terminal_that_went_away_does_not_stop_the_run_nor_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with on_terminal(log=log, read=False) as (console, terminal):
        assert isinstance(console, TerminalConsole)
        terminal.hang_up()
        say_everything(console)
    assert log.read_text() == EVERYTHING


def test_a_log_that_cannot_be_written_is_said_once_and_talk_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    console, stream = off_terminal(log=tmp_path / "file" / "log")
    console.say("one")
    console.say("two")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "cannot be written and is given up" in lines[0]
    assert lines[1:] == ["one", "two"]


def test_several_threads_may_talk_at_once() -> None:
    with on_terminal() as (console, terminal):
        threads = [
            threading.Thread(target=lambda n=n: [console.say(f"<{n}.{i}>") for i in range(50)]) for n in range(3)
        ]
        for thread in threads:
            thread.start()
        for step in range(50):
            console.progress(replace(PROGRESS, step=step))
        for thread in threads:
            thread.join()
    said = re.findall(r"<\d+\.\d+>", terminal.text())
    assert len(set(said)) == 150


def test_an_evaluation_in_the_middle_of_an_epoch_names_the_step() -> None:
    line = evaluation_line(epoch=None, step=1200, metrics={"val/accuracy": 0.5})
    assert line == "  step 1,200  val accuracy 50 %"


def test_the_plain_line_aligns_its_steps() -> None:
    assert progress_line(replace(PROGRESS, step=9)).startswith("  step   9/936  ")


def test_a_log_on_a_storage_that_hangs_holds_up_nobody_for_long_and_gets_its_lines_in_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)  # opening it waits for a reader, as on a storage that does not answer
    console, stream = off_terminal(log=log)
    said = [f"line {number}" for number in range(200)]
    speaker = threading.Thread(target=lambda: [console.say(text) for text in said], daemon=True)
    speaker.start()
    speaker.join(30)
    assert not speaker.is_alive()
    assert stream.getvalue().splitlines() == said
    with log.open() as reader:
        assert reader.read().splitlines() == said


def test_a_terminal_that_takes_nothing_holds_up_nobody_for_long_and_gets_its_lines_in_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = [f"line {number} {'x' * 200}" for number in range(300)]  # more than a pseudo-terminal takes
    with on_terminal(log=log, read=False) as (console, terminal):

        def speak() -> None:
            for number, text in enumerate(said):
                console.progress(replace(PROGRESS, step=number % 900))
                console.say(text)
            console.close()

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        speaker.join(30)
        assert not speaker.is_alive()
        assert [line for line in log.read_text().splitlines() if line.startswith("line")] == said
        terminal.read()
        until(lambda: terminal.has_shown(said[-1]), "the last line on the terminal")
    assert re.findall(r"line \d+ x+", terminal.text()) == said


def test_what_is_said_is_there_although_there_are_no_threads_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    console, stream = off_terminal()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    console.error("can't start new thread")
    assert stream.getvalue() == "error: can't start new thread\n"
