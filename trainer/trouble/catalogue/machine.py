"""What the kernel and Python say where a machine has too little of something, and what loading processes die of."""

from trainer.trouble.catalogue.signature import Signature

_SHM = "docker run --shm-size=8g (or --ipc=host), or fewer DataLoader workers; `df -h /dev/shm` shows how full it is"
_OUR_SHM = (
    "docker run --shm-size=8g (or --ipc=host), fewer data.workers, data.prefetch=1, or data.workers=0, which needs none"
)
_ROOM = "`df -h` and `df -i` tell; free some, keep fewer checkpoints, or write to another disk"
_OUR_ROOM = "`df -h` and `df -i` tell; checkpoint.keep=1, or run.dir=/a/disk/with/space"

MACHINE = (
    Signature(
        "shared_memory",
        r"unable to (allocate shared memory|write to file|mmap \d+ bytes from file|resize file).*</torch_[^>]*>.*"
        r"(No space left on device|Cannot allocate memory)"
        r"|out of shared memory|insufficient shared memory|killed by signal: Bus error",
        "/dev/shm is full: the loading processes hand their batches over there",
        _SHM,
        _OUR_SHM,
        native=True,
    ),
    Signature(
        "loader_killed",
        r"DataLoader worker \(pid (?P<pid>\d+)\) is killed by signal: (?P<signal>[\w ]+?)\. ",
        "data-loading process {pid} was killed ({signal}): mostly by the kernel, for want of memory",
        "`dmesg | grep -i oom` tells; fewer DataLoader workers, a smaller prefetch_factor, or more memory (--mem)",
        "`dmesg | grep -i oom` tells; fewer data.workers, data.prefetch=1, or more memory",
        may_pass=True,
    ),
    Signature(
        "loader_gone",
        r"DataLoader worker \(pid\(s\) (?P<pids>[\d, ]+)\) exited unexpectedly",
        "data-loading process {pids} died without a word: killed, or crashed in native code",
        "num_workers=0 shows the error itself; `dmesg | tail` shows what the kernel did",
        "data.workers=0 shows the error itself; `dmesg | tail` shows what the kernel did",
        may_pass=True,
    ),
    Signature(
        "disk_full",
        r"No space left on device(: '(?P<file>[^']+)')?|unexpected pos \d+ vs \d+|database or disk is full",
        "the disk is full ({file})",
        _ROOM,
        _OUR_ROOM,
        may_pass=True,
        native=True,
    ),
    Signature(
        "quota",
        r"Disk quota exceeded",
        "your quota on that disk is used up",
        "`quota -s` tells; free some, or write to another disk",
        "`quota -s` tells; checkpoint.keep=1, or run.dir=/a/disk/with/space",
        may_pass=True,
        native=True,
    ),
    Signature(
        "read_only",
        r"\[Errno 30\] Read-only file system(: '(?P<file>[^']+)')?",
        "the disk can only be read ({file})",
        "write elsewhere; a disk that was writable before has had errors (`dmesg | tail`)",
        "run.dir=/a/directory/you/can/write; a disk that was writable before has had errors (`dmesg | tail`)",
    ),
    Signature(
        "permission",
        r"\[Errno 13\] Permission denied(: '(?P<file>[^']+)')?",
        "this user may not open it ({file})",
        "`ls -ld` shows whose it is; in a container: --user $(id -u), or a volume that this user may write",
    ),
    Signature(
        "storage_error",
        r"\[Errno 5\] Input/output error|\[Errno 116\] Stale file handle|\[Errno 107\] Transport endpoint",
        "the storage failed: a broken disk, or a file server that was restarted",
        "`dmesg | tail` and the file server's administrator; `paceline doctor --storage DIR` tries the disk",
        may_pass=True,
        native=True,
    ),
    Signature(
        "open_files",
        r"Too many open files",
        "this process may not open more files",
        "`ulimit -n 65536`; torch.multiprocessing.set_sharing_strategy('file_system') needs fewer",
        "`ulimit -n 65536`, or fewer data.workers",
        native=True,
    ),
    Signature(
        "threads",
        r"can't start new thread|Thread creation failed: Resource temporarily unavailable"
        r"|BlockingIOError: \[Errno 11\] Resource temporarily unavailable",
        "this user, or this container, may not start more threads or processes",
        "`ulimit -u` and `cat /sys/fs/cgroup/pids.max` tell; OMP_NUM_THREADS=1, fewer DataLoader workers",
        "`ulimit -u` and `cat /sys/fs/cgroup/pids.max` tell; fewer data.workers",
        may_pass=True,
        native=True,
    ),
    Signature(
        "host_memory",
        r"^MemoryError|DefaultCPUAllocator: can't allocate memory|\[Errno 12\] Cannot allocate memory"
        r"|std::bad_alloc",
        "this machine, or this container, did not have as much memory (not the GPU's) as was asked for",
        "the line above says where; each worker takes its own share, so fewer or smaller copies help",
        may_pass=True,
        native=True,
    ),
    Signature(
        "heap",
        r"double free or corruption|free\(\): (?P<what>[\w ]+)|malloc\(\): [\w ]+|corrupted (size|double-linked)|"
        r"munmap_chunk\(\): ",
        "native code has damaged its own memory: an extension built for another version, or a bug in one",
        "the log has Python's stacks; reinstall the extension that they name for this torch and numpy",
        may_pass=True,
        native=True,
    ),
)
