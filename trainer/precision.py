"""Which number format the arithmetic uses, and fp16's loss scaling done right together with clipping."""

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.distributed import World
from trainer.errors import ConfigError, TrainingError, UnfitError

_AMPERE = (8, 0)
_VOLTA = (7, 0)
_MOST_SKIPPED_IN_A_ROW = 50
_STRENGTH = ("fp32", "fp16", "bf16")


@dataclass(frozen=True, slots=True)
class Precision:
    """A choice of number format.

    Attributes:
        name: fp32, tf32, bf16 or fp16.
        autocast_dtype: of autocast regions; None: no autocast.
        uses_scaler: whether small gradients need loss scaling.
        reason: why this one, a sentence for the user.
    """

    name: str
    autocast_dtype: torch.dtype | None
    uses_scaler: bool
    reason: str

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """A context for the forward pass and the loss; a new one for each use."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast_dtype)

    @contextmanager
    def matmuls(self) -> Generator[None, None, None]:
        """Sets what CUDA may round float32 products to, and restores it; put it around the whole training.

        fp32 means float32 throughout (torch's default lets cuDNN's convolutions use TF32), tf32 allows TF32
        in matrix products, convolutions and recurrent layers. bf16 and fp16 leave torch's setting as it is.

        Both of torch's settings are set, the older `allow_tf32` first: where they contradict each other, torch raises
        when a model, or torch.compile, reads the older one.
        """
        # Any: torch's annotations do not know these attributes.
        cudnn: Any = torch.backends.cudnn
        places: list[tuple[Any, str]] = [
            *((place, "allow_tf32") for place in (torch.backends.cuda.matmul, cudnn)),
            *((place, "fp32_precision") for place in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)),
        ]
        before = [getattr(place, name) for place, name in places]
        wanted = {"fp32": {"allow_tf32": False, "fp32_precision": "ieee"},
                  "tf32": {"allow_tf32": True, "fp32_precision": "tf32"}}.get(self.name)  # fmt: skip
        try:
            if wanted is not None:
                for place, name in places:
                    setattr(place, name, wanted[name])
            yield
        finally:
            for (place, name), value in zip(places, before, strict=True):
                setattr(place, name, value)


def choose(requested: str, device: torch.device) -> Precision:
    """The precision for `precision=...` on a device.

    Args:
        requested: auto, fp32, tf32, bf16 or fp16.
        device: a CPU or a CUDA device.

    Raises:
        ConfigError: not one of those words.
        UnfitError: the hardware cannot do it.
    """
    if device.type == "cuda":
        return _on_gpu(requested, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    return _on_cpu(requested, cpu_flags())


def agreed(requested: str, world: World) -> Precision:
    """The precision on this worker's device; `auto` takes the one that suits the weakest hardware of all workers.

    Raises:
        ConfigError: not one of those words.
        UnfitError: this worker's hardware cannot do it.
    """
    own = choose(requested, world.device)
    if requested != "auto":
        return own
    here = torch.tensor([_STRENGTH.index(own.name)], device=world.device)
    weakest = _STRENGTH[int(world.gather(here).min())]
    return own if weakest == own.name else _made(weakest, f"another worker's hardware is not fast at {own.name}")


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of this machine's CPU as Linux names them; empty where that cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), ()))


def _on_gpu(requested: str, name: str, capability: tuple[int, int]) -> Precision:
    what = f"{name} (compute capability {capability[0]}.{capability[1]})"
    if requested == "auto":
        if capability >= _AMPERE:
            return _made("bf16", f"{what} is fast at bf16")
        if capability >= _VOLTA:
            return _made("fp16", f"{what} has fp16 tensor cores and no bf16")
        return _made("fp32", f"{what} has no tensor cores")
    if requested == "tf32" and capability < _AMPERE:
        raise UnfitError(f"{what} has no TF32", "precision=auto, or fp32")
    slow = requested == "bf16" and capability < _AMPERE
    return _made(requested, f"asked for; warning: {what} only emulates bf16, slowly" if slow else "asked for")


def _on_cpu(requested: str, flags: frozenset[str]) -> Precision:
    fast = sorted({"amx_bf16", "avx512_bf16"} & flags)
    if requested == "auto":
        if fast:
            return _made("bf16", f"this CPU has {' and '.join(fast)}")
        return _made("fp32", "this CPU has neither amx_bf16 nor avx512_bf16")
    if requested == "tf32":
        raise UnfitError("TF32 needs a GPU of compute capability 8.0 or more", "precision=auto, or fp32")
    if requested == "bf16" and not fast:
        return _made("bf16", "asked for; warning: this CPU has no bf16 instructions, fp32 is faster")
    if requested == "fp16":
        return _made("fp16", "asked for; warning: fp16 on a CPU is slow and only good for trials")
    return _made(requested, "asked for")


def _made(name: str, reason: str) -> Precision:
    dtypes = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in dtypes:
        raise ConfigError(f"precision={name} is unknown", f"take auto, {', '.join(dtypes)}")
    return Precision(name=name, autocast_dtype=dtypes[name], uses_scaler=name == "fp16", reason=reason)


class Scaler:
    """The end of an optimizer step: unscale, clip, step, or skip where fp16 overflowed.

    Without loss scaling it neither scales nor waits for the device.

    Args:
        enabled: `Precision.uses_scaler`.
        device: where the gradients are.
        initial_scale: the first loss scale; torch's default.

    Attributes:
        skipped: steps that were left out so far because a gradient was infinite or NaN.
        gradient_norm: the unscaled norm before clipping, on the device; None before the first clipped step.
    """

    def __init__(self, *, enabled: bool, device: torch.device, initial_scale: float = 2.0**16) -> None:
        self._scaler = torch.amp.GradScaler(device.type, init_scale=initial_scale) if enabled else None
        self._scale = initial_scale
        self.skipped = 0
        self._skipped_in_a_row = 0
        self.gradient_norm: Tensor | None = None

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call `backward()` on, for each micro-batch."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def step(self, optimizer: Optimizer, clip_norm: float | None, parameters: Iterable[nn.Parameter]) -> bool:
        """Ends an optimizer step, after the last micro-batch's gradients are in (and reduced over the ranks).

        Args:
            optimizer: its parameters' gradients are unscaled in place.
            clip_norm: largest global norm of the unscaled gradients; None leaves them.
            parameters: whose gradients are clipped.

        Returns:
            False when the step was skipped because of an infinite or NaN gradient: weights and optimizer are
            untouched, and whatever goes with a step (schedule, averages) must be left out too. All ranks
            agree, since they hold the same reduced gradients. Always True without loss scaling.

        Raises:
            TrainingError: no scale, however small, makes the gradients finite.
        """
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if clip_norm is not None:
            self.gradient_norm = nn.utils.clip_grad_norm_(parameters, clip_norm, error_if_nonfinite=False)
        if self._scaler is not None and not self._updated():
            self._count_skipped()
            return False
        self._skipped_in_a_row = 0
        optimizer.step()
        return True

    @property
    def enabled(self) -> bool:
        """Whether the loss is scaled."""
        return self._scaler is not None

    def _count_skipped(self) -> None:
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == _MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{self._skipped_in_a_row} steps in a row had gradients that fp16 cannot hold, although the loss scale "
                f"has fallen to {self._scale:.1e}",
                "precision=bf16, or fp32 where the hardware has no bf16; if that does not help, a lower optim.lr",
            )

    def _updated(self) -> bool:
        """Adapts the loss scale; whether all gradients were finite.

        `GradScaler.step` is not used: it leaves the skipping to fused optimizers, and a fused SGD whose very
        first step is skipped has taken uninitialised memory for its momentum. The scale falls exactly when a
        step must be skipped.
        """
        assert self._scaler is not None
        self._scaler.update()
        before, self._scale = self._scale, self._scaler.get_scale()
        return self._scale >= before

    def state_dict(self) -> dict[str, float | int]:
        """Plain numbers, fit for JSON."""
        scaling = {} if self._scaler is None else self._scaler.state_dict()
        return {**scaling, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continues from `state_dict()`; a state made without loss scaling leaves the scale as it is."""
        self.skipped = int(state.get("skipped", 0))
        scaling = {key: value for key, value in state.items() if key != "skipped"}
        if self._scaler is not None and scaling:
            self._scaler.load_state_dict(scaling)
            self._scale = self._scaler.get_scale()
