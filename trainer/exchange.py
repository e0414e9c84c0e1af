"""Small figures that all ranks agree on, summed beside the computation and read late."""

import threading

import torch

from trainer.distributed import World


class Exchange:
    """A vector that is being added up over all ranks; starting it waits for nothing.

    Args:
        world: the workers.
        values: float64 [n] on the device; not changed.
    """

    def __init__(self, world: World, values: torch.Tensor) -> None:
        self._values = values.clone()
        self._work = world.start_sum(self._values)
        self._lock = threading.Lock()
        self._copied: torch.cuda.Event | None = None
        if world.device.type == "cuda":
            if self._work is not None:
                self._work.wait()  # orders the stream; the host does not wait
            self._values = self._values.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """The sums; waits until they are there. May be called from several threads."""
        with self._lock:
            if self._copied is not None:
                self._copied.synchronize()
            elif self._work is not None:
                self._work.wait()
                self._work = None
        return self._values.tolist()
