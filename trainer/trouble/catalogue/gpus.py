"""What CUDA, its libraries and the driver say."""

from trainer.trouble.catalogue.signature import Signature

_LESS_MEMORY = (
    "a smaller batch on each GPU (accumulate gradients for the same batch in total), mixed precision, activation "
    "checkpointing; PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True where much is reserved but unallocated"
)
_OUR_LESS_MEMORY = "{smaller}precision=bf16, or a smaller data.image_size"

GPUS = (
    Signature(
        "gpu_memory",
        r"CUDA out of memory\. Tried to allocate (?P<asked>[\d.]+ \w+)\. GPU (?P<gpu>\d+) has a total capacity of "
        r"(?P<total>[\d.]+ \w+) of which (?P<free>[\d.]+ \w+) is free",
        "GPU {gpu} is out of memory: {asked} more were asked for, {free} of its {total} were free",
        _LESS_MEMORY,
        _OUR_LESS_MEMORY,
        native=True,
    ),
    Signature(
        "gpu_memory_untold",
        r"CUDA out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|CU(BLAS|DNN)_STATUS_ALLOC_FAILED",
        "the GPU is out of memory",
        f"{_LESS_MEMORY}; nvidia-smi shows who else is on it",
        f"{_OUR_LESS_MEMORY}; nvidia-smi shows who else is on the GPU",
        native=True,
    ),
    Signature(
        "gpu_ecc",
        r"uncorrectable (ECC|NVLink) error|Xid \(PCI:[^)]*\): (48|63|64|74|92|94|95)\b",
        "the GPU's memory or its links have a defect that cannot be corrected",
        "another node; reset this GPU or restart its machine; if it comes again, have it looked at (paceline doctor)",
        may_pass=True,
        native=True,
    ),
    Signature(
        "gpu_lost",
        r"fallen off the bus|GPU is lost|GPU_IS_LOST|Xid \(PCI:[^)]*\): 79\b",
        "the machine has lost the GPU",
        "another node; only a restart of this machine brings it back, mostly after a look at power and cooling",
        may_pass=True,
        native=True,
    ),
    Signature(
        "gpu_assert",
        r"(?P<said>CUDA error: device-side assert triggered|Assertion `t >= 0 && t < n_classes` failed"
        r"|(?<=^IndexError: )Target -?\d+ is out of bounds)",
        "a target of the data is none of its classes ({said})",
        "targets count from 0 to the number of classes less one; CUDA_LAUNCH_BLOCKING=1 or a run on the CPU names the "
        "value and the place",
        "targets count from 0 to the number of classes less one; device=cpu names the value and the place",
        native=True,
    ),
    Signature(
        "gpu_address",
        r"CUDA error: (an illegal memory access was encountered|misaligned address|unspecified launch failure)",
        "a GPU kernel touched memory that is not its own: mostly a custom kernel, an index out of range, or a defect",
        "CUDA_LAUNCH_BLOCKING=1 names the operation; where only one GPU has it, `paceline doctor` looks at that one",
        may_pass=True,
        native=True,
    ),
    Signature(
        "gpu_architecture",
        r"no kernel image is available for execution on the device",
        "this build of torch has no code for this GPU",
        "a build of torch for it; `paceline doctor` says what the GPU is and what the build was made for",
        native=True,
    ),
    Signature(
        "driver_too_old",
        r"NVIDIA driver on your system is too old \(found version (?P<found>\d+)\)"
        r"|CUDA driver version is insufficient for CUDA runtime version",
        "the NVIDIA driver is older than the CUDA that this torch was built for",
        "a newer driver, or a torch built for an older CUDA; `paceline doctor` names both versions",
        native=True,
    ),
    Signature(
        "no_driver",
        r"Found no NVIDIA driver on your system",
        "this machine, or this container, has no NVIDIA driver",
        "docker run --gpus all, a node with GPUs, or a run on the CPU",
        "docker run --gpus all, a node with GPUs, or device=cpu",
    ),
    Signature(
        "no_cuda_build",
        r"Torch not compiled with CUDA enabled",
        "this torch was built without CUDA",
        "a CUDA build of torch; `paceline doctor` says what is installed",
    ),
    Signature(
        "gpu_number",
        r"CUDA error: invalid device ordinal",
        "a worker asked for a GPU that it cannot see",
        "as many workers as there are GPUs in CUDA_VISIBLE_DEVICES, and torch.cuda.set_device(LOCAL_RANK) in each",
        "cluster.gpus_per_node=null: as many workers as there are GPUs in CUDA_VISIBLE_DEVICES",
        native=True,
    ),
    Signature(
        "gpu_busy",
        r"CUDA-capable device\(s\) is/are busy or unavailable",
        "somebody else has the GPU for themselves (exclusive compute mode)",
        "nvidia-smi shows by whom; another GPU through CUDA_VISIBLE_DEVICES",
        may_pass=True,
        native=True,
    ),
    Signature(
        "cuda_in_fork",
        r"Cannot re-initialize CUDA in forked subprocess",
        "a forked process touched CUDA: mostly a data set that puts tensors on the GPU in a data-loading worker",
        "return CPU tensors from the data set, or DataLoader(multiprocessing_context='spawn')",
        "return CPU tensors from the data set, or data.workers=0",
    ),
    Signature(
        "cudnn_version",
        r"cuDNN version incompatibility.*compiled +against (?P<built>\([\d, ]+\)) but found runtime version "
        r"(?P<found>\([\d, ]+\))",
        "torch was built for cuDNN {built}, and another one is loaded: {found}",
        "unset LD_LIBRARY_PATH: torch brings its own",
    ),
    Signature(
        "cublas_start",
        r"CUBLAS_STATUS_NOT_INITIALIZED|CUDNN_STATUS_NOT_INITIALIZED",
        "cuBLAS or cuDNN could not start on the GPU: mostly its memory is full, or an earlier kernel has failed",
        f"{_LESS_MEMORY}; CUDA_LAUNCH_BLOCKING=1 shows an earlier error",
        f"{_OUR_LESS_MEMORY}; CUDA_LAUNCH_BLOCKING=1 shows an earlier error",
        may_pass=True,
        native=True,
    ),
    Signature(
        "cudnn",
        r"(?P<what>CUDNN_STATUS_\w+|CUBLAS_STATUS_\w+)|unable to find an engine to execute this computation",
        "cuDNN or cuBLAS refused an operation: too little GPU memory for its work, or libraries that do not match",
        f"{_LESS_MEMORY}; `paceline doctor` compares the libraries' versions",
        f"{_OUR_LESS_MEMORY}; `paceline doctor` compares the libraries' versions",
        may_pass=True,
        native=True,
    ),
)
