"""Numbers that are not finite, digests and determinism on a real GPU."""

import math
from pathlib import Path

import torch
from torch import nn

from tests.gpu.test_training import DIGITS, trainer
from trainer.numerics.gate import Gate
from trainer.numerics.replicas import Digest, rounding
from trainer.precision import choose
from trainer.run.parting import compare, trace_of
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir


def test_a_closed_gate_leaves_no_trace_and_lets_the_host_run_on() -> None:
    device = torch.device("cuda")
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(device)
    for fused in (torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=True),
                  torch.optim.SGD(model.parameters(), 0.1, fused=True),
                  torch.optim.AdamW(model.parameters(), 0.1, fused=True)):  # fmt: skip
        gate = Gate(model, fused, device, only_looks=False)
        for scale in (1.0, math.nan, 1.0):
            before = [tensor.clone() for tensor in model.state_dict().values()]
            gate.begin()
            (model(torch.randn(8, 4, device=device)).square().sum() * scale).backward()
            begins = not fused.state and fused.defaults.get("momentum") != 0
            if not begins:
                torch.cuda.set_sync_debug_mode("error")
            try:
                assert gate.lets_through(list(model.parameters()))
                fused.step()
                gate.end()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            fused.zero_grad()
            same = all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
            assert same == math.isnan(scale)


def test_fp16_learns_with_each_policy_and_without_a_false_alarm(tmp_path: Path) -> None:
    for policy in ("stop", "skip", "rollback"):
        arguments = [*DIGITS, "precision=fp16", f"on_nonfinite={policy}", f"run.dir={tmp_path}", f"run.name={policy}"]
        said = trainer(*arguments)
        assert "not finite" not in said
        events = read_json_lines(RunDir(tmp_path / policy).events)
        assert not [row for row in events if row["event"] in ("nonfinite", "rollback", "replicas_differ")]


def test_a_flipped_bit_is_another_digest_and_the_cpu_has_the_same() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    on_cpu = int(Digest(model)())
    model.cuda()
    digest = Digest(model)
    before = int(digest())
    assert before == on_cpu
    weight = next(model.parameters()).detach().view(torch.int32).view(-1)
    for bit in range(31):
        weight[5] ^= 1 << bit
        assert int(digest()) != before
        weight[5] ^= 1 << bit
    assert int(digest()) == before


def test_a_gpu_is_told_from_others_by_its_name_and_capability() -> None:
    device = torch.device("cuda")
    major, minor = torch.cuda.get_device_capability(device)
    assert rounding(device).startswith(f"{torch.cuda.get_device_name(device)} {major}.{minor}, ")


def test_fp32_is_float32_throughout_and_the_older_switches_can_be_read() -> None:
    device = torch.device("cuda")
    torch.manual_seed(0)
    images, layer = torch.randn(8, 64, 16, 16, dtype=torch.float64), nn.Conv2d(64, 64, 3).double()
    exact = layer(images)
    with choose("fp32", device).matmuls():
        assert not torch.backends.cudnn.allow_tf32
        found = layer.float().to(device)(images.float().to(device)).double().cpu()
    # TF32 keeps 10 bits of a factor: about 1e-3.
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_deterministic_runs_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        said = trainer(*DIGITS, "deterministic=true", f"run.dir={tmp_path}", f"run.name={name}")
        assert "CUBLAS_WORKSPACE_CONFIG=:4096:8" in said
    assert compare(*(trace_of(RunDir(tmp_path / name)) for name in ("a", "b"))).agree
