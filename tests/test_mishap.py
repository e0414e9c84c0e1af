"""What an error in a user's own model or a worker that does not answer looks like to a person."""

from pathlib import Path

from tests.trainer_command import DIGITS, TRAINER, run
from trainer.mishap import explain
from trainer.rundir import RunDir

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear({inputs}, {outputs})
    def forward(self, images):
        return self.layer(images.flatten(1))
"""
ARGUMENTS = ["data=digits", "model._target_=net.Net", *DIGITS[1:], "max_steps=2", "run.name=n"]


def test_an_error_in_a_users_model_names_the_users_line_and_leaves_a_traceback_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET.format(inputs=63, outputs="num_classes"))
    done = run(TRAINER, *ARGUMENTS, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "(net.py:8 in forward)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "in forward\n    return self.layer" in RunDir(tmp_path / "runs" / "n").log(0, 0).read_text()


def test_a_model_with_too_few_logits_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET.format(inputs=64, outputs=7))
    done = run(TRAINER, *ARGUMENTS, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "more classes than the model gives logits" in done.stderr


def test_a_worker_that_does_not_answer_is_told_in_words() -> None:
    gloo = RuntimeError("[/build/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 8000ms for recv operation")
    problem, fix = explain(gloo)
    assert "another worker has not answered" in problem
    assert "distributed.timeout_s" in fix
