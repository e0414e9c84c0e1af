"""The catalogue of known errors: each by its real words, with what it means and advice that exists."""

import re
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trouble.samples import ERRORS, LOGS, Sample
from trainer.config.keys import leaves
from trainer.trouble import meaning, peers

OVERRIDE = re.compile(r"\b([a-z]+(?:\.[a-z_]+)+|micro_batch_size|global_batch_size|precision|device|debug|tracking)=")


@pytest.mark.parametrize("sample", ERRORS, ids=lambda sample: f"{sample.name}-{sample.kind}")
def test_an_error_is_known_by_its_words(sample: Sample) -> None:
    found = meaning.of_error(sample.kind, sample.message, ours=False)
    assert found is not None
    assert (found.name, "{" in found.meaning + found.advice) == (sample.name, False)
    assert sample.says in found.meaning
    assert found.advice
    assert not found.meaning.endswith(".")


@pytest.mark.parametrize("sample", LOGS, ids=lambda sample: sample.name)
def test_the_end_of_a_log_tells_of_a_native_death(sample: Sample) -> None:
    found = meaning.of_log(f"step 1, loss 2.3\n{sample.message}", ours=False)
    assert found is not None
    assert found.name == sample.name
    assert sample.says in found.meaning


def test_every_entry_has_a_sample_and_a_name_of_its_own() -> None:
    names = [signature.name for signature in meaning.CATALOGUE]
    assert len(set(names)) == len(names)
    assert set(names) == {sample.name for sample in (*ERRORS, *LOGS)}
    native = {signature.name for signature in meaning.CATALOGUE if signature.native}
    assert {sample.name for sample in LOGS} <= native


def test_our_keys_are_advised_where_our_trainer_ran_and_they_exist() -> None:
    known = {*leaves(), "tracking"}
    for signature in meaning.CATALOGUE:
        for key in OVERRIDE.findall(signature.ours):
            assert key in known, f"{signature.name} advises {key}="
        assert not set(OVERRIDE.findall(signature.advice)) & known, f"{signature.name} advises our keys to any program"


def test_too_little_gpu_memory_is_told_with_its_sizes_and_half_the_micro_batch() -> None:
    error = ERRORS[0]
    found = meaning.of_error(error.kind, error.message, ours=True, micro_batch=64)
    assert found is not None
    assert found.advice.startswith("micro_batch_size=32 (the same samples and weighting")
    alone = meaning.of_error(error.kind, error.message, ours=True, micro_batch=1)
    assert alone is not None
    assert alone.advice.startswith("precision=bf16")
    foreign = meaning.of_error(error.kind, error.message, ours=False)
    assert foreign is not None
    assert "micro_batch_size" not in foreign.advice


def test_what_may_pass_is_told_from_what_would_come_again() -> None:
    passing = [
        ("DistBackendError", "NCCL error: unhandled system error"),
        ("AcceleratorError", "CUDA error: uncorrectable ECC error encountered"),
        ("OSError", "[Errno 28] No space left on device"),
        ("ConnectionResetError", "[Errno 104] Connection reset by peer"),
        ("ReadTimeout", "HTTPSConnectionPool"),
        ("RuntimeError", "DataLoader worker (pid(s) 7) exited unexpectedly"),
        ("OutOfMemoryError", "CUDA out of memory."),
    ]
    lasting = [
        ("ValueError", "bad value"),
        ("ModuleNotFoundError", "No module named 'timm'"),
        ("IndexError", "Target 3 is out of bounds."),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (3x4 and 2x2)"),
        ("KeyError", "'label'"),
    ]
    assert [error for error in passing if not meaning.may_pass(*error)] == []
    assert [error for error in lasting if meaning.may_pass(*error)] == []


@given(kind=st.text(max_size=20), message=st.text(max_size=200))
def test_any_words_are_told_or_not_and_never_break_it(kind: str, message: str) -> None:
    for ours in (False, True):
        meaning.of_error(kind, message, ours=ours)
        meaning.of_log(message, ours=ours)
    meaning.may_pass(kind, message)


@given(words=st.sampled_from([*peers.GONE, *peers.SILENT]), around=st.text(max_size=30))
def test_what_is_said_of_other_workers_is_told_by_the_same_words_as_the_verdict_goes_by(
    words: str, around: str
) -> None:
    found = meaning.of_error("RuntimeError", f"x {words} {around}", ours=False)
    assert found is not None
    silent = meaning.of_error("RuntimeError", f"x {words}", ours=False)
    assert silent is not None
    assert (silent.name == "silence") is peers.is_silent(words)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL])
def test_a_signal_has_a_meaning(number: int) -> None:
    found = meaning.of_signal(number, ours=False)
    assert found is not None
    assert found.meaning
    assert "data." not in found.advice


def test_an_unknown_signal_has_none() -> None:
    assert meaning.of_signal(signal.SIGUSR1, ours=True) is None
    assert meaning.of_signal(99, ours=True) is None
