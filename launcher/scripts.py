"""What people type to start a script of their own, and how it is typed here."""

import re
from collections.abc import Sequence
from pathlib import Path

FOR_PROGRAMS = ("run.name=", "run.dir=", "run.fresh=", "cluster.", "cluster=", "device=", "hydra.", "hydra/")
"""What an override begins with that matters to any program."""

_PYTHON = re.compile(r"(?:python|pypy)[\d.]*")
_TAKE_A_VALUE = ("-W", "-X")
_WORKERS = re.compile(r"--nproc[-_]per[-_]node(?:=(?P<count>\d+))?")


def is_script(word: str) -> bool:
    """Whether a word means a Python file."""
    return word.endswith(".py") and "=" not in word


def starts_python(word: str) -> bool:
    """Whether a word starts a Python, or several with torchrun."""
    return _PYTHON.fullmatch(Path(word).name) is not None or _is_torchrun(word)


def behind_dashes(words: Sequence[str]) -> list[str] | None:
    """The words of `run` with the script and its arguments behind `--`; None where there is no script."""
    at = next((at for at, word in enumerate(words) if starts_python(word) or is_script(word)), None)
    return None if at is None else with_program(words[:at], words[at:])


def with_program(words: Sequence[str], program: Sequence[str]) -> list[str] | None:
    """The words of `run` that start a program without a Python or torchrun in front of it; None where none is left.

    Args:
        words: what stands before `--`.
        program: what stands behind it.
    """
    ours, left = list(words), list(program)
    if left and starts_python(left[0]):
        by_torchrun = _is_torchrun(left.pop(0))
        while left and left[0].startswith("-") and left[0] != "-m":
            option = left.pop(0)
            if option == "-c":
                return None
            if found := _WORKERS.fullmatch(option):
                ours.append(f"cluster.gpus_per_node={found['count'] or (left.pop(0) if left else '')}")
            elif option in _TAKE_A_VALUE or (by_torchrun and "=" not in option and left and _is_value(left[0])):
                left = left[1:]
    is_there = len(left) > 1 if left[:1] == ["-m"] else bool(left) and (is_script(left[0]) or Path(left[0]).is_file())
    return [*ours, "--", *left] if is_there else None


def _is_value(word: str) -> bool:
    """Whether a word belongs to the option of torchrun before it, which some have none of."""
    return not word.startswith("-") and not is_script(word)


def _is_torchrun(word: str) -> bool:
    return Path(word).name == "torchrun"
