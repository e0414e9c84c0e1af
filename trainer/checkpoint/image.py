"""A safetensors file in memory: tensors are copied to where the file has them, and the memory is written as it is."""

import json
from collections.abc import Iterator, Mapping

import torch

from trainer.checkpoint import sealed
from trainer.errors import TrainingError

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
HOLDABLE = frozenset(_DTYPES)
"""The dtypes of tensors that a file can hold."""

_ALIGNMENT = 64


class Image:
    """A buffer that is laid out once for tensors of given names, shapes and dtypes, and filled again and again.

    Args:
        tensors: what it is laid out for. With any of them on a GPU the buffer is pinned, and filling it is queued
            on the GPU's current stream: later changes to the tensors, which are queued there too, cannot leak in.

    Attributes:
        nbytes: size of the file.

    Raises:
        TrainingError: a tensor is of a dtype that such a file cannot hold.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.dtype not in _DTYPES:
                raise TrainingError(
                    f"a checkpoint cannot hold {name}, which is {tensor.dtype}",
                    "another dtype, or a buffer that is registered with persistent=False",
                )
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        self._spans: dict[str, tuple[int, int]] = {}
        self._shapes = {name: (tensors[name].shape, tensors[name].dtype) for name in names}
        offset = 0
        for name in names:
            self._spans[name] = (offset, offset + tensors[name].nbytes)
            offset += tensors[name].nbytes
        header = _header(self._entries({name: name for name in names}))
        self.nbytes = len(header) + offset
        self._on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        self._copied: torch.cuda.Event | None = None
        # Zeros rather than empty: its pages are taken once, here, and not as the first save comes to each.
        self._buffer = torch.zeros(self.nbytes, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._buffer[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        self._data = self._buffer[len(header) :]
        self._views = [
            self._data[start:end].view(tensors[name].dtype).view(tensors[name].shape)
            for name, (start, end) in self._spans.items()
        ]

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether it was laid out for such tensors."""
        return self._shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes the tensors' values; on a GPU the host does not wait for them."""
        with torch.no_grad():
            torch._foreach_copy_(self._views, [tensors[name].detach() for name in self._spans], non_blocking=True)
        if self._on_gpu:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def pieces(self) -> Iterator[memoryview]:
        """The file's content; waits until the GPU has delivered it."""
        self._wait()
        yield self._buffer.numpy().data

    def part(self, names: Mapping[str, str], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
        """The content of a file of some of the tensors under other names; waits as `pieces` does.

        Args:
            names: name in the new file -> name here.
            metadata: what the new file says besides its checksum; whoever loads its tensors does not see that.
        """
        self._wait()
        ordered = dict(sorted(names.items(), key=lambda item: (-self._shapes[item[1]][1].itemsize, item[0])))
        data = self._data.numpy().data
        pieces = [data[slice(*self._spans[name])] for name in ordered.values()]
        yield _header(sealed.seal(self._entries(ordered), metadata or {}, pieces))
        yield from pieces

    def _wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def _entries(self, names: Mapping[str, str]) -> dict[str, object]:
        """What a file says of tensors in falling order of their elements' size: so each lies aligned."""
        entries: dict[str, object] = {}
        offset = 0
        for name, here in names.items():
            (start, end), (shape, dtype) = self._spans[here], self._shapes[here]
            entries[name] = {
                "dtype": _DTYPES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, offset + end - start],
            }
            offset += end - start
        return entries


def _header(entries: Mapping[str, object]) -> bytes:
    """The file's beginning."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
