"""Errors as they are printed, word for word, with where the words are from.

`here`: provoked with torch 2.14.1 and Python 3.11 on Linux. `libc10_cuda.so` and the like: the words in that library of
torch 2.14.1, with numbers put in. Else a public issue thread.
"""

from typing import NamedTuple


class Sample(NamedTuple):
    """An error, the catalogue's entry for it, and words that its meaning must have."""

    name: str
    kind: str
    message: str
    source: str
    says: str = ""


ERRORS = (
    Sample(
        "gpu_memory",
        "OutOfMemoryError",
        "CUDA out of memory. Tried to allocate 22.00 MiB. GPU 0 has a total capacity of 23.65 GiB of which 11.06 MiB is "
        "free. Including non-PyTorch memory, this process has 23.60 GiB memory in use. Of the allocated memory 22.90 GiB "
        "is allocated by PyTorch, and 194.87 MiB is reserved by PyTorch but unallocated. If reserved but unallocated "
        "memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See "
        "documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)",
        "pytorch#16417; the same in libc10_cuda.so",
        "22.00 MiB more were asked for, 11.06 MiB of its 23.65 GiB were free",
    ),
    Sample("gpu_memory_untold", "RuntimeError", "CUDA error: out of memory", "libc10_cuda.so"),
    Sample(
        "gpu_ecc",
        "AcceleratorError",
        "CUDA error: uncorrectable ECC error encountered",
        "vllm#5222",
    ),
    Sample(
        "gpu_assert",
        "AcceleratorError",
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API "
        "call, so the stacktrace below might be incorrect.",
        "libc10_cuda.so",
        "none of its classes (CUDA error: device-side assert triggered)",
    ),
    Sample("gpu_assert", "IndexError", "Target 3 is out of bounds.", "here", "(Target 3 is out of bounds)"),
    Sample("gpu_address", "RuntimeError", "CUDA error: an illegal memory access was encountered", "libc10_cuda.so"),
    Sample(
        "gpu_architecture",
        "RuntimeError",
        "CUDA error: no kernel image is available for execution on the device",
        "pytorch#31285",
    ),
    Sample(
        "driver_too_old",
        "RuntimeError",
        "The NVIDIA driver on your system is too old (found version 10020). Please update your GPU driver by downloading "
        "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx",
        "libtorch_cuda.so",
    ),
    Sample(
        "driver_too_old",
        "RuntimeError",
        "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
        "nunif#702",
    ),
    Sample(
        "no_driver",
        "RuntimeError",
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
        "http://www.nvidia.com/Download/index.aspx",
        "here",
    ),
    Sample("no_cuda_build", "AssertionError", "Torch not compiled with CUDA enabled", "torch/cuda/__init__.py"),
    Sample("gpu_number", "AcceleratorError", "CUDA error: invalid device ordinal", "libc10_cuda.so"),
    Sample(
        "gpu_busy",
        "AcceleratorError",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "cuda_runtime's error text",
    ),
    Sample(
        "cuda_in_fork",
        "RuntimeError",
        "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the 'spawn' start "
        "method",
        "torch/cuda/__init__.py",
    ),
    Sample(
        "cudnn_version",
        "RuntimeError",
        "cuDNN version incompatibility: PyTorch was compiled  against (8, 7, 0) but found runtime version (8, 2, 4). "
        "PyTorch already comes bundled with cuDNN. One option to resolving this error is to ensure PyTorch can find the "
        "bundled cuDNN.",
        "kohya_ss#1096",
        "built for cuDNN (8, 7, 0), and another one is loaded: (8, 2, 4)",
    ),
    Sample(
        "cublas_start",
        "RuntimeError",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "Qwen#120",
    ),
    Sample("cudnn", "RuntimeError", "GET was unable to find an engine to execute this computation", "cog#1430"),
    Sample("cudnn", "RuntimeError", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "libtorch_cuda.so"),
    Sample(
        "unused_parameters",
        "RuntimeError",
        "Expected to have finished reduction in the prior iteration before starting a new one. This error indicates that "
        "your module has parameters that were not used in producing loss. You can enable unused parameter detection by "
        "passing the keyword argument `find_unused_parameters=True` to `torch.nn.parallel.DistributedDataParallel`, and "
        "by \nmaking sure all `forward` function outputs participate in calculating loss. \nIf you already have done the "
        "above, then the distributed data parallel module wasn't able to locate the output tensors in the return value of "
        "your module's `forward` function. Please include the loss function and the structure of the return value of "
        "`forward` of your module when reporting this issue (e.g. list, dict, iterable).\nParameter indices which did not "
        "receive grad for rank 0: 2 3\n In addition, you can set the environment variable TORCH_DISTRIBUTED_DEBUG to "
        "either INFO or DETAIL to print out information about which particular parameters did not receive gradient on "
        "this rank as part of this error",
        "here",
    ),
    Sample(
        "graph_changed",
        "RuntimeError",
        "Your training graph has changed in this iteration, e.g., one parameter is unused in first iteration, but then got "
        "used in the second iteration. this is not compatible with static_graph set to True.",
        "here",
    ),
    Sample(
        "late_gradient",
        "TypeError",
        "expected Tensor as element 1 in argument 2, but got NoneType",
        "here",
    ),
    Sample(
        "marked_ready_twice",
        "RuntimeError",
        "Expected to mark a variable ready only once. This error is caused by one of the following reasons: 1) Use of a "
        "module parameter outside the `forward` function.",
        "libtorch_cpu.so",
    ),
    Sample(
        "head_shape",
        "RuntimeError",
        "Error(s) in loading state_dict for Sequential:\n\tsize mismatch for fc.weight: copying a param with shape "
        "torch.Size([1000, 8]) from checkpoint, the shape in current model is torch.Size([10, 8]).\n\tsize mismatch for "
        "fc.bias: copying a param with shape torch.Size([1000]) from checkpoint, the shape in current model is "
        "torch.Size([10]).",
        "here",
        "fc.weight is [1000, 8] there and [10, 8] here",
    ),
    Sample(
        "state_keys",
        "RuntimeError",
        'Error(s) in loading state_dict for Linear:\n\tMissing key(s) in state_dict: "weight", "bias". \n\tUnexpected '
        'key(s) in state_dict: "module.weight". ',
        "here",
    ),
    Sample(
        "devices",
        "RuntimeError",
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
        "libtorch_cpu.so",
    ),
    Sample("devices", "RuntimeError", "Tensor on device meta is not on the expected device cpu!", "here"),
    Sample("precisions", "RuntimeError", "mat1 and mat2 must have the same dtype, but got Half and Float", "here"),
    Sample(
        "shapes", "RuntimeError", "mat1 and mat2 shapes cannot be multiplied (3x4 and 2x2)", "here", "3x4 times 2x2"
    ),
    Sample(
        "channels",
        "RuntimeError",
        "Given groups=1, weight of size [8, 3, 3, 3], expected input[2, 1, 8, 8] to have 3 channels, but got 1 channels "
        "instead",
        "here",
        "images of 3 channels, and got 1",
    ),
    Sample(
        "batch_norm_of_one",
        "ValueError",
        "Expected more than 1 value per channel when training, got input size torch.Size([1, 4])",
        "here",
    ),
    Sample(
        "ragged_batch",
        "RuntimeError",
        "stack expects each tensor to be equal size, but got [1] at entry 0 and [2] at entry 1",
        "here",
    ),
    Sample(
        "inplace",
        "RuntimeError",
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        "[torch.FloatTensor [3]], which is output 0 of Exp, is at version 1; expected version 0 instead. Hint: enable "
        "anomaly detection to find the operation that failed to compute its gradient, with "
        "torch.autograd.set_detect_anomaly(True, check_nan=False).",
        "here",
    ),
    Sample(
        "inplace", "RuntimeError", "a leaf Variable that requires grad is being used in an in-place operation.", "here"
    ),
    Sample(
        "second_backward",
        "RuntimeError",
        "Trying to backward through the graph a second time (or directly access saved tensors after they have already "
        "been freed). Saved intermediate values of the graph are freed when you call .backward() or autograd.grad().",
        "here",
    ),
    Sample(
        "no_gradient", "RuntimeError", "element 0 of tensors does not require grad and does not have a grad_fn", "here"
    ),
    Sample("embedding_index", "IndexError", "index out of range in self", "here"),
    Sample(
        "lambda", "AttributeError", "Can't pickle local object 'lam.<locals>.<lambda>'", "here", "lam.<locals>.<lambda>"
    ),
    Sample("lambda", "AttributeError", "Can't get local object 'main.<locals>.f'", "Python 3.13", "main.<locals>.f"),
    Sample(
        "damaged_checkpoint",
        "RuntimeError",
        "PytorchStreamReader failed reading zip archive: failed finding central directory. This is an internal miniz "
        "error. If you are seeing this error, there is a high likelihood that your checkpoint file is corrupted.",
        "here",
    ),
    Sample(
        "unsafe_checkpoint",
        "UnpicklingError",
        "Weights only load failed. This file can still be loaded, to do so you have two options, \x1b[1mdo those steps "
        "only if you trust the source of the checkpoint\x1b[0m. \n\tWeightsUnpickler error: Unsupported global: GLOBAL "
        "__main__.X was not an allowed global by default.",
        "here",
        "Python objects (__main__.X)",
    ),
    Sample("module", "ModuleNotFoundError", "No module named 'timm'", "here", "Python does not find timm"),
    Sample(
        "shared_library",
        "ImportError",
        "libcudart.so.11.0: cannot open shared object file: No such file or directory",
        "pytorch#69041",
        "libcudart.so.11.0",
    ),
    Sample(
        "shared_library",
        "ImportError",
        "/lib/x86_64-linux-gnu/libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by /opt/x.so)",
        "the dynamic loader",
        "GLIBCXX_3.4.29",
    ),
    Sample("recursion", "RecursionError", "maximum recursion depth exceeded", "here"),
    Sample("tracker_login", "UsageError", "No API key configured. Use `wandb login` to log in.", "here, wandb 0.31"),
    Sample("tracker_login", "AuthenticationError", "API key must have 40+ characters, has 3.", "here, wandb 0.31"),
    Sample(
        "shared_memory",
        "RuntimeError",
        "unable to allocate shared memory(shm) for file </torch_17559_3064291544_0>: No space left on device (28)",
        "here, in a /dev/shm of 16 MiB",
    ),
    Sample(
        "shared_memory",
        "RuntimeError",
        "DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "libtorch_python.so",
    ),
    Sample(
        "loader_killed",
        "RuntimeError",
        "DataLoader worker (pid 12981) is killed by signal: Killed. ",
        "libtorch_python.so",
        "process 12981 was killed (Killed)",
    ),
    Sample(
        "loader_gone", "RuntimeError", "DataLoader worker (pid(s) 12981) exited unexpectedly", "here", "process 12981"
    ),
    Sample("disk_full", "OSError", "[Errno 28] No space left on device", "here, from /dev/full"),
    Sample(
        "disk_full", "RuntimeError", "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598", "here"
    ),
    Sample("quota", "OSError", "[Errno 122] Disk quota exceeded: '/home/me/x'", "the kernel's text of errno 122"),
    Sample("read_only", "OSError", "[Errno 30] Read-only file system: '/data/x'", "the kernel's text", "(/data/x)"),
    Sample("permission", "PermissionError", "[Errno 13] Permission denied: '/root/x'", "here", "(/root/x)"),
    Sample("storage_error", "OSError", "[Errno 116] Stale file handle: '/nfs/x'", "the kernel's text of errno 116"),
    Sample("storage_error", "OSError", "[Errno 5] Input/output error", "the kernel's text of errno 5"),
    Sample("open_files", "OSError", "[Errno 24] Too many open files: '/dev/null'", "here"),
    Sample("threads", "RuntimeError", "can't start new thread", "here, under ulimit -u 1"),
    Sample("threads", "BlockingIOError", "[Errno 11] Resource temporarily unavailable", "here, from os.fork"),
    Sample("host_memory", "MemoryError", "", "here"),
    Sample(
        "host_memory",
        "RuntimeError",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        "4503599627370496 bytes. Error code 12 (Cannot allocate memory)",
        "here",
    ),
    Sample(
        "nccl_same_gpu",
        "DistBackendError",
        "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, invalid usage (run with NCCL_DEBUG=WARN for "
        "details), NCCL version 2.20.5\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast "
        "error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 10",
        "verl#161",
        "ranks 1 and 0",
    ),
    Sample(
        "nccl_shared_memory",
        "DistBackendError",
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system error (run with "
        "NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclSystemError: System call (e.g. socket, malloc) or external "
        "library call failed or device error. \nLast error:\nError while creating shared memory segment "
        "/dev/shm/nccl-WU88OE (size 9637888), error: No space left on device (28)",
        "pytorch/ci-infra#490",
    ),
    Sample(
        "nccl_system",
        "DistBackendError",
        "NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.25.1\nncclSystemError: "
        "System call (e.g. socket, malloc) or external library call failed or device error. \nLast error:\n",
        "pytorch#149984",
    ),
    Sample(
        "nccl_cuda",
        "DistBackendError",
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3699, unhandled cuda error (run with "
        "NCCL_DEBUG=INFO for details), NCCL version 2.27.3\nncclUnhandledCudaError: Call to CUDA function failed.",
        "aws-samples/llm_model_hub#115",
    ),
    Sample(
        "nccl_remote",
        "DistBackendError",
        "NCCL error: remote process exited or there was a network error, NCCL version 2.27.5\nncclRemoteError: A call "
        "failed possibly due to a network error or a remote process exiting prematurely.",
        "libtorch_cuda.so and libnccl.so.2",
    ),
    Sample(
        "silence",
        "RuntimeError",
        "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv "
        "operation to complete",
        "here",
    ),
    Sample("silence", "DistStoreError", "wait timeout after 300000ms, keys: /worker/1", "libtorch_cpu.so"),
    Sample(
        "address_in_use",
        "DistNetworkError",
        "The server socket has failed to listen on any local network address. port: 34113, useIpv6: false, code: -98, "
        "name: EADDRINUSE, message: address already in use",
        "here",
    ),
    Sample(
        "address_in_use",
        "OSError",
        "[Errno 98] Address already in use (while attempting to bind on address ('', 34113))",
        "here",
    ),
    Sample(
        "unreachable",
        "DistNetworkError",
        "The client socket has timed out after 2000ms while trying to connect to (no-such-host.invalid, 1234).",
        "here",
        "no-such-host.invalid:1234",
    ),
    Sample("host_name", "gaierror", "[Errno -2] Name or service not known", "here"),
    Sample(
        "host_name",
        "RuntimeError",
        "Unable to resolve hostname to a (local) address. ",
        "libtorch_cpu.so",
    ),
    Sample(
        "interface",
        "RuntimeError",
        "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/device.cc:101] ifa != nullptr. Unable to find "
        "address for: eth9",
        "libtorch_cpu.so",
        "no such network interface (eth9)",
    ),
    Sample(
        "peer_gone",
        "RuntimeError",
        "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:42162: Connection "
        "reset by peer. This is typically caused by a remote worker hanging or bugs in the application.",
        "here",
    ),
)
"""Exceptions: type and message."""

LOGS = (
    Sample("heap", "", "free(): double free detected in tcache 2\nFatal Python error: Aborted\n", "here"),
    Sample("threads", "", "\nlibgomp: Thread creation failed: Resource temporarily unavailable\n", "here"),
    Sample(
        "silence",
        "",
        "terminate called after throwing an instance of 'c10::DistBackendError'\n  what():  [PG 1 Rank 1] Process group "
        "watchdog thread terminated with exception: [Rank 1] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=199, OpType=_REDUCE_SCATTER_BASE, NumelIn=7098994688, NumelOut=443687168, Timeout(ms)=600000) ran "
        "for 600013 milliseconds before timing out.",
        "Megatron-LM#935",
    ),
    Sample(
        "gpu_ecc",
        "",
        "[Fri Aug  9 13:32:56 2024] NVRM: Xid (PCI:0000:00:08): 94, pid='<unknown>', name=<unknown>, Contained: SM (0x1). "
        "RST: No, D-RST: No",
        "akash-network/support#244",
    ),
    Sample(
        "gpu_lost",
        "",
        "[74889.644138] NVRM: Xid (PCI:0000:02:00): 79, GPU has fallen off the bus.",
        "gpu-burn#1",
    ),
    Sample(
        "nccl_shared_memory",
        "",
        "[3] include/shm.h:28 NCCL WARN Call to posix_fallocate failed : No space left on device\n[3] NCCL INFO "
        "include/shm.h:41 -> 2",
        "nccl#525",
    ),
    Sample(
        "shared_memory",
        "",
        "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).\n ",
        "here",
    ),
    Sample(
        "gpu_memory",
        "",
        "terminate called after throwing an instance of 'c10::OutOfMemoryError'\n  what():  CUDA out of memory. Tried to "
        "allocate 1.00 GiB. GPU 3 has a total capacity of 79.33 GiB of which 26.16 MiB is free.",
        "libc10_cuda.so",
        "GPU 3",
    ),
    Sample("host_key", "", "Host key verification failed.\r\nlost connection", "OpenSSH"),
)
"""Ends of logs of processes that died without an exception."""
