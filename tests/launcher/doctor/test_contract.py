"""What programs rely on: the doctor's JSON and its names; and that its page tells of every finding and image."""

import ctypes
import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.doctor import apart, builds, environment, graphics, live, places, storage
from launcher.doctor.finding import FAIL, PASS, STATES, WARN, Finding, examine, worst
from launcher.doctor.surroundings import Surroundings
from tests.trainer_command import ROOT
from trainer.config import Config, DataConfig, RunConfig

PAGE = (ROOT / "docs" / "doctor.md").read_text()


def documented(title: str) -> list[str]:
    """The names in the tables of a part of the page."""
    part = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", part, flags=re.MULTILINE)
    return [name for cell in cells for name in re.findall("`([^`]+)`", cell)]


def test_the_page_names_every_finding_that_there_is() -> None:
    names = [check.name for check in (*environment.ALWAYS, *graphics.HEALTH)]
    assert documented("The machine and the environment") == names
    assert documented("Trials") == [*live.ORDER, "trials"]
    assert documented("A disk") == [*(check.name for check in storage.CHECKS), "place"]


def test_the_page_tells_of_every_image_what_the_table_of_builds_says() -> None:
    rows = re.findall(r"^\| `paceline:(\w+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", PAGE, flags=re.MULTILINE)
    told = {tag: (cuda, driver, gpus.partition(":")[0]) for tag, cuda, driver, gpus in rows}
    expected = {
        build.tag: (
            "{}.{}".format(*build.cuda),
            f"{build.driver} or newer",
            "{}.{} to {}.{}".format(*build.capabilities[0], *build.capabilities[1]),
        )
        for build in builds.BUILDS
    }
    assert told == {**expected, builds.CPU_TAG: ("none", "none", "none")}


def test_the_json_is_one_versioned_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--quick", "--json", "device=cpu", f"run.dir={tmp_path}"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["version", "state", "verdict", "findings"]
    assert found["version"] == 1
    assert [list(row) for row in found["findings"]] == [["name", "state", "message", "fix"]] * len(environment.ALWAYS)
    assert [row["name"] for row in found["findings"]] == [check.name for check in environment.ALWAYS]
    assert {row["state"] for row in found["findings"]} <= set(STATES)
    # Whoever has something to mend is told how.
    assert all(row["fix"] for row in found["findings"] if row["state"] != PASS)
    assert (code == 3) == (found["state"] == FAIL)


def test_the_worst_state_is_the_whole_ones() -> None:
    rows = [Finding("a", PASS, ""), Finding("b", WARN, ""), Finding("c", FAIL, "")]
    assert [worst(rows[:count]) for count in range(4)] == [PASS, PASS, WARN, FAIL]


@contextmanager
def dead_mount(place: Path) -> Generator[Path]:
    """A file system whose server never answers, as a network's may; to make one takes root."""
    place.mkdir()
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("there is no /dev/fuse that may be used here")
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"dead", bytes(place), b"fuse", 0, options) != 0:
        os.close(server)
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        # With its server gone, whoever waits gets an error.
        os.close(server)
        libc.umount2(bytes(place), 2)


def test_a_mount_that_does_not_answer_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "_ANSWER_S", 0.3)
    with dead_mount(tmp_path / "dead") as dead:
        assert main(["doctor", "--storage", str(dead)]) == 3
        assert f"{dead}: no answer within 0.3 s" in capsys.readouterr().out
        config = Config(run=RunConfig(dir=f"{dead}/runs"), data=DataConfig(root=f"{dead}/images"))
        checks = [replace(check, limit_s=0.3) for check in places.CHECKS]
        found = examine(checks, Surroundings(config, {}))
    assert [(row.name, row.state, row.message) for row in found] == [
        ("run.dir", FAIL, "no answer within 0.3 s"),
        ("data", FAIL, "no answer within 0.3 s"),
    ]
    assert all(row.fix for row in found)


def test_who_is_left_behind_keeps_nobody_waiting_for_the_end_of_our_output() -> None:
    streams = apart.ask(lambda: [str(Path(f"/proc/self/fd/{stream}").readlink()) for stream in range(3)], 10)
    assert streams == ["/dev/null"] * 3


def test_where_there_is_no_room_for_temporary_files_the_trials_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.tempfile, "gettempdir", lambda: 1 / 0)
    (found,) = live.examine(Surroundings(Config(device="cpu"), {}))
    assert (found.state, "TMPDIR" in found.fix) == (FAIL, True)
