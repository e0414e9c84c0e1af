"""Which precision is chosen, and loss scaling together with clipping, accumulation and skipped steps."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.workers import run_workers
from trainer import precision
from trainer.distributed import World
from trainer.errors import ConfigError, UnfitError
from trainer.precision import Precision, Scaler, agreed, choose, cpu_flags

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")


def cpu(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))


@pytest.mark.parametrize(
    ("capability", "name", "scaled"),
    [((9, 0), "bf16", False), ((8, 0), "bf16", False), ((7, 5), "fp16", True), ((7, 0), "fp16", True),
     ((6, 1), "fp32", False)],
)  # fmt: skip
def test_auto_takes_what_a_gpu_is_fast_at(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str, scaled: bool
) -> None:
    gpu(monkeypatch, capability)
    chosen = choose("auto", CUDA)
    assert (chosen.name, chosen.uses_scaler) == (name, scaled)
    assert f"{capability[0]}.{capability[1]}" in chosen.reason


@pytest.mark.parametrize(
    ("flags", "name"),
    [(("amx_bf16",), "bf16"), (("avx512_bf16", "avx2"), "bf16"), (("avx512f",), "fp32"), ((), "fp32")],
)
def test_auto_takes_bf16_on_a_cpu_with_bf16_instructions(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], name: str
) -> None:
    cpu(monkeypatch, *flags)
    assert choose("auto", CPU).name == name


def agreed_beside_another_machine(world: World) -> tuple[str, str]:
    precision.cpu_flags = lambda: frozenset({"amx_bf16"} if world.rank else ())  # type: ignore[assignment]
    chosen = agreed("auto", world)
    return chosen.name, chosen.reason


def test_auto_is_the_same_on_all_workers_whatever_their_hardware() -> None:
    weak, strong = run_workers(2, agreed_beside_another_machine)
    assert weak[0] == strong[0] == "fp32"
    assert "another worker's hardware is not fast at bf16" in strong[1]


def test_the_flags_of_the_cpu_are_read(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(file) == {"fpu", "avx512_bf16"}
    assert cpu_flags(tmp_path / "missing") == frozenset()


def test_tf32_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnfitError, match=r"8\.0"):
        choose("tf32", CPU)
    gpu(monkeypatch, (7, 5))
    with pytest.raises(UnfitError, match="no TF32"):
        choose("tf32", CUDA)
    gpu(monkeypatch, (8, 0))
    assert choose("tf32", CUDA).autocast_dtype is None


def test_slow_choices_are_honoured_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (7, 5))
    assert choose("bf16", CUDA).name == "bf16"
    assert "warning" in choose("bf16", CUDA).reason
    cpu(monkeypatch)
    assert "warning" in choose("bf16", CPU).reason
    assert "warning" in choose("fp16", CPU).reason
    assert "warning" not in choose("fp32", CPU).reason


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision=fp8"):
        choose("fp8", CPU)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_computes_in_the_chosen_format(name: str, dtype: torch.dtype) -> None:
    with choose(name, CPU).autocast(CPU):
        assert nn.Linear(4, 4)(torch.randn(2, 4)).dtype == dtype


def tf32_settings() -> tuple[list[bool], str, list[str]]:
    """What torch's older and newer switches say; torch raises where they contradict each other."""
    backends: Any = torch.backends
    places = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    return (
        [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32],
        torch.get_float32_matmul_precision(),
        [place.fp32_precision for place in places],
    )


@pytest.mark.parametrize(
    ("name", "allowed", "products", "setting"), [("fp32", False, "highest", "ieee"), ("tf32", True, "high", "tf32")]
)
def test_tf32_is_switched_explicitly_and_restored(name: str, allowed: bool, products: str, setting: str) -> None:
    before = tf32_settings()
    with Precision(name, None, False, "").matmuls():
        assert tf32_settings() == ([allowed] * 2, products, [setting] * 3)
    assert tf32_settings() == before
    with pytest.raises(KeyError), Precision(name, None, False, "").matmuls():
        raise KeyError
    assert tf32_settings() == before


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def optimizer_of(model: nn.Module, name: str = "sgd") -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)


def batch(size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 6, generator=generator), torch.randint(0, 3, (size,), generator=generator)


def accumulate(model: nn.Module, scaler: Scaler, sizes: tuple[int, ...], chosen: Precision) -> None:
    """The gradients of one step's mean loss, in micro-batches of these sizes."""
    images, targets = batch(sum(sizes))
    for x, y in zip(images.split(sizes), targets.split(sizes), strict=True):
        with chosen.autocast(CPU):
            loss = nn.functional.cross_entropy(model(x), y, reduction="sum") / sum(sizes)
        scaler.scale(loss).backward()


FP32, FP16 = Precision("fp32", None, False, ""), Precision("fp16", torch.float16, True, "")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_skipped_step_leaves_weights_and_optimizer_untouched(name: str, clip: float | None) -> None:
    model, scaler = network(), Scaler(enabled=True, device=CPU, initial_scale=2.0**40)
    optimizer = optimizer_of(model, name)
    weights, state = deepcopy(model.state_dict()), deepcopy(optimizer.state_dict())
    accumulate(model, scaler, (12,), FP16)
    assert scaler.step(optimizer, clip, model.parameters()) is False
    assert scaler.skipped == 1
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert optimizer.state_dict() == state


def test_after_skipped_steps_training_goes_on_as_if_they_had_not_been() -> None:
    def trained(initial_scale: float) -> tuple[dict[str, torch.Tensor], int]:
        model, scaler = network(), Scaler(enabled=True, device=CPU, initial_scale=initial_scale)
        optimizer = optimizer_of(model)
        applied = 0
        for _ in range(60):
            optimizer.zero_grad()
            accumulate(model, scaler, (12,), FP16)
            applied += scaler.step(optimizer, None, model.parameters())
            if applied == 3:
                break
        return model.state_dict(), scaler.skipped

    (smooth, none), (bumpy, some) = trained(2.0**10), trained(2.0**30)
    assert (none, some > 5) == (0, True)
    for key, value in smooth.items():
        torch.testing.assert_close(bumpy[key], value, rtol=2e-2, atol=2e-3)


def test_clipping_sees_unscaled_gradients() -> None:
    model, scaler = network(), Scaler(enabled=True, device=CPU, initial_scale=2.0**12)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
    accumulate(model, scaler, (12,), FP32)
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm() / 2**12
    clip = norm.item() / 4
    assert scaler.step(optimizer, clip, model.parameters())
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(clip, rel=1e-3)
    assert scaler.gradient_norm is not None
    assert scaler.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize(("chosen", "tolerance"), [(FP32, 1e-5), (FP16, 5e-3)])
def test_accumulation_scaling_and_clipping_together_give_the_plain_step(chosen: Precision, tolerance: float) -> None:
    def trained(scaler: Scaler, sizes: tuple[int, ...], chosen: Precision) -> list[torch.Tensor]:
        model = network()
        optimizer = optimizer_of(model)
        for _ in range(4):
            optimizer.zero_grad()
            accumulate(model, scaler, sizes, chosen)
            assert scaler.step(optimizer, 0.05, model.parameters())
        return [p.detach() for p in model.parameters()]

    plain = trained(Scaler(enabled=False, device=CPU), (19,), FP32)
    scaled = trained(Scaler(enabled=True, device=CPU, initial_scale=2.0**10), (8, 8, 3), chosen)
    for expected, value in zip(plain, scaled, strict=True):
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def test_without_scaling_nothing_waits_for_the_device() -> None:
    model = network().to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = Scaler(enabled=False, device=torch.device("meta"))
    scaler.scale(model(torch.empty(2, 6, device="meta")).sum()).backward()
    # A meta tensor has no values: anything that asks for one raises.
    assert scaler.step(optimizer, 1.0, model.parameters()) is True


def test_the_state_is_plain_and_continues_the_scale_and_the_count() -> None:
    model, scaler = network(), Scaler(enabled=True, device=CPU, initial_scale=2.0**40)
    accumulate(model, scaler, (12,), FP16)
    scaler.step(optimizer_of(model), None, model.parameters())
    state = json.loads(json.dumps(scaler.state_dict()))
    assert (state["scale"], state["skipped"]) == (2.0**39, 1)
    other = Scaler(enabled=True, device=CPU)
    other.load_state_dict(state)
    assert other.state_dict() == scaler.state_dict()
    off = Scaler(enabled=False, device=CPU)
    off.load_state_dict(state)
    assert off.state_dict() == {"skipped": 1}
    other = Scaler(enabled=True, device=CPU)
    other.load_state_dict(off.state_dict())
    assert other.state_dict()["scale"] == 2.0**16


def test_a_scale_that_was_loaded_is_the_one_that_falls() -> None:
    model, scaler = network(), Scaler(enabled=True, device=CPU, initial_scale=2.0**4)
    scaler.load_state_dict({**Scaler(enabled=True, device=CPU).state_dict(), "scale": 2.0**40, "_growth_tracker": 0})
    accumulate(model, scaler, (12,), FP16)
    assert scaler.step(optimizer_of(model), None, model.parameters()) is False
