"""The process group, or its stand-in when there is one process only; the one place that knows ranks."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from trainer import cores
from trainer.config import DistributedConfig
from trainer.errors import PacelineError, UnfitError
from trainer.wording import plural

T = TypeVar("T")

# What both gloo and NCCL send.
_SENT = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool,
}  # fmt: skip
# torch 2.13 renamed broadcast_buffers.
_HAS_FORWARD_SYNC = "forward_sync_buffers" in signature(nn.parallel.DistributedDataParallel.__init__).parameters


@dataclass(frozen=True, slots=True)
class World:
    """Who this process is among the workers; with one process every exchange is a no-op.

    Attributes:
        rank: 0 to world_size - 1, over all nodes.
        local_rank: the worker's number on its node, and its GPU's.
        world_size: workers of the job.
        local_world_size: workers of this node.
        node_rank: this node's number.
        device: where this worker computes.
        distributed: whether there is a process group.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    device: torch.device
    distributed: bool

    @property
    def is_rank_zero(self) -> bool:
        """Whether this worker speaks, tracks and writes."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Machines of the job."""
        return max(1, self.world_size // self.local_world_size)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds a tensor up over all ranks, in place."""
        if self.distributed:
            dist.all_reduce(tensor)
        return tensor

    def start_sum(self, tensor: torch.Tensor) -> "dist.Work | None":
        """Begins to add a tensor up over all ranks, in place; None when there is nothing to wait for."""
        return dist.all_reduce(tensor, async_op=True) if self.distributed else None

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Every rank's tensor, stacked to [world_size, ...], on all ranks."""
        if not self.distributed:
            return tensor.unsqueeze(0)
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def everyones(self, value: T) -> list[T]:
        """Every rank's value (any picklable object), on all ranks."""
        values = [value] * self.world_size
        if self.distributed:
            dist.all_gather_object(values, value)
        return values

    def from_rank_zero(self, value: Any) -> Any:
        """Rank 0's value (any picklable object), on all ranks."""
        if not self.distributed:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Runs `action` on rank 0 only; every rank gets its result, or raises its PacelineError."""
        result, error = None, None
        if self.is_rank_zero:
            try:
                result = action()
            except PacelineError as raised:
                error = raised
        result, kind, texts = self.from_rank_zero((result, type(error), error and (error.problem, error.fix)))
        if error is not None:
            raise error
        if texts:
            raise kind(*texts)
        return cast(T, result)

    def own_cores(self) -> int:
        """CPU cores of this worker alone, whatever it and its neighbours are bound to; all ranks must call it."""
        machine = (socket.gethostname(), self.node_rank)
        places = self.everyones((machine, cores.allowed()))
        here = [bound for where, bound in places if where == machine]
        return cores.per_worker(places[self.rank][1], here, cores.cgroup_quota())

    def side_channel(self) -> "dist.TCPStore | None":
        """A key-value store beside the training group for each node's first worker; None on a single node."""
        if self.nodes == 1:
            return None
        address = os.environ["MASTER_ADDR"]
        store = None
        if self.is_rank_zero:
            store = _store_on(address)
        port = self.from_rank_zero(store.port if store else None)
        if store is None and self.local_rank == 0:
            store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
        return store


@contextmanager
def join(config: DistributedConfig, *, device: str) -> Iterator[World]:
    """Joins the process group that torchrun's environment describes, or stands alone without one.

    Args:
        config: timeout of collectives.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UnfitError: no GPU, fewer GPUs than workers, or the rendezvous cannot be reached.
    """
    distributed = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    local_rank = _from_environment("LOCAL_RANK", 0)
    world_size = _from_environment("WORLD_SIZE", 1)
    local_world_size = _from_environment("LOCAL_WORLD_SIZE", world_size if distributed else 1)
    world = World(
        rank=_from_environment("RANK", 0),
        local_rank=local_rank,
        world_size=world_size,
        local_world_size=local_world_size,
        node_rank=_from_environment("GROUP_RANK", 0),
        device=choose_device(device, local_rank=local_rank, local_world_size=local_world_size),
        distributed=distributed,
    )
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if not distributed:
        yield world
        return
    _init_process_group(config, world)
    try:
        yield world
    except BaseException:
        if world.device.type == "cuda" and dist.group.WORLD is not None:
            # Destroying would wait for collectives that the other ranks will not join any more.
            dist.group.WORLD.abort()
        with suppress(Exception):
            # What happened is worth more than what went wrong while leaving.
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def choose_device(requested: str, *, local_rank: int, local_world_size: int) -> torch.device:
    """The device of a worker.

    Raises:
        UnfitError: a GPU was asked for and there is none, or there are fewer than workers on this node.
    """
    if requested == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count > local_rank:
        return torch.device("cuda", local_rank)
    if count:
        raise UnfitError(
            f"{local_world_size} workers on {socket.gethostname()}, but only {plural(count, 'GPU')}",
            f"cluster.gpus_per_node={count} (torchrun --nproc_per_node={count}), or device=cpu",
        )
    if requested == "cuda":
        raise UnfitError(f"device=cuda, but no usable GPU on {socket.gethostname()}", "device=cpu, or device=auto")
    return torch.device("cpu")


def data_parallel(model: nn.Module, world: World, config: DistributedConfig) -> nn.Module:
    """Wraps the model so that gradients are averaged over all ranks; a single worker keeps it as it is.

    Args:
        model: on its device.
        world: the workers.
        config: SyncBatchNorm, bucket size, gradient compression, whether parameters may take no part in a step.
    """
    if world.world_size == 1:
        return model
    if config.sync_batchnorm and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # Sending rank 0's buffers at every step would only cost time: they are averaged where they are used.
    buffers: dict[str, Any] = {"forward_sync_buffers" if _HAS_FORWARD_SYNC else "broadcast_buffers": False}
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, _send_as_bytes(model))
    wrapped = nn.parallel.DistributedDataParallel(
        model,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        bucket_cap_mb=config.bucket_mb,
        gradient_as_bucket_view=True,
        find_unused_parameters=config.find_unused_parameters,
        **buffers,
    )
    if config.compression != "none":
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        hooks = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}
        wrapped.register_comm_hook(None, hooks[config.compression])
    if not config.find_unused_parameters:
        _arrange_buckets(wrapped)
    return wrapped


def _arrange_buckets(wrapped: nn.parallel.DistributedDataParallel) -> None:
    """Has DDP arrange its buckets for good, with gradients of zeros; else it would after the first step.

    Where it looks for unused parameters it never does.
    From three ranks on a sum's rounding depends on the place in the bucket: a resumed run's first step would not be
    the same to the bit.
    """
    wrapped.reducer.prepare_for_forward()
    wrapped.reducer.prepare_for_backward([])
    parameters = [parameter for parameter in wrapped.module.parameters() if parameter.requires_grad]
    # One by one, in about the order in which a backward pass comes by.
    for parameter in reversed(parameters):
        parameter.backward(torch.zeros_like(parameter))
    for parameter in parameters:
        parameter.grad = None


@torch.no_grad()
def _send_as_bytes(model: nn.Module) -> list[str]:
    """Gives all ranks rank 0's buffers of the dtypes that DDP cannot send; returns their names."""
    rare = {name: buffer for name, buffer in model.named_buffers() if buffer.dtype not in _SENT}
    for buffer in rare.values():
        mine = buffer.reshape(-1).view(torch.uint8)
        sent = mine.clone()
        dist.broadcast(sent, src=0)
        if not torch.equal(sent, mine):
            buffer.copy_(sent.view(buffer.dtype).view(buffer.shape))
    return list(rare)


def averaged_statistics(model: nn.Module, world: World) -> dict[str, torch.Tensor]:
    """BatchNorm's running statistics, averaged over all ranks, by their names in the state dict; the model's stay.

    Added up in float64: the average of equal values is that value, so averaging twice is averaging once.
    """
    names = [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        for name in ("running_mean", "running_var")
    ]
    if world.world_size == 1 or not names:
        return {}
    buffers = dict(model.named_buffers())
    mine = [buffers[name] for name in names]
    flat = world.sum(torch.cat([buffer.flatten().double() for buffer in mine])).div_(world.world_size)
    parts = flat.split([buffer.numel() for buffer in mine])
    return {name: part.view_as(buffer).to(buffer.dtype) for name, part, buffer in zip(names, parts, mine, strict=True)}


def average_buffers(model: nn.Module, world: World) -> None:
    """Averages BatchNorm's running statistics over all ranks, in place."""
    buffers = dict(model.named_buffers())
    for name, value in averaged_statistics(model, world).items():
        buffers[name].copy_(value)


def _init_process_group(config: DistributedConfig, world: World) -> None:
    on_gpu = world.device.type == "cuda"
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=timedelta(seconds=config.timeout_s),
            device_id=world.device if on_gpu else None,
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        if "EADDRINUSE" in str(error):
            raise UnfitError(
                f"the rendezvous port {where} is in use by another program",
                "torchrun --standalone takes a free one, and so does paceline run",
            ) from error
        raise UnfitError(
            f"cannot reach the rendezvous at {where}: {str(error).splitlines()[0]}",
            "check that MASTER_ADDR and MASTER_PORT are the first node's and that no firewall is between",
        ) from error


def _store_on(address: str) -> "dist.TCPStore":
    """A store that listens on this address alone, where torch's own way is to listen on every interface.

    Where the address is not this machine's own, but leads to it, there is no other way.
    """
    try:
        listener = socket.create_server((address, 0))
    except OSError:
        return dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
    port = listener.getsockname()[1]
    return dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _from_environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))
