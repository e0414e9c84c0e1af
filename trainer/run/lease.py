"""The right to train in a run directory: one job has it, and a job that has lost it publishes nothing more.

A lock keeps others out where the file system knows locks; the kernel lets go of it when its holder dies. Beside it lies
a record of the holder, whose time the holder renews. That is for file systems whose locks do not reach other hosts: a
record that is renewed has a living holder; one that is not renewed for a while may be taken over. A holder that does
not find its own record there has lost the lease; so the record is never deleted: one that was paused while another job
came and went must find that job's, marked as released.
"""

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainer.errors import InUseError
from trainer.rundir import RELEASED, RunDir, read_json, write_json

_PERIOD_S = 10.0
_SILENCE_S = 35.0
_PATIENCE_S = 5.0
_LOCK_LINGERS_S = 120.0
_POLL_S = 0.1
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LeaseLost(OSError):
    """Another job has taken the run directory over; a kind of OSError, for what cannot be written any more."""


class Lease:
    """The lease of one run directory; take it before anything is written there, and release it at the end.

    Args:
        run: the directory, which exists.
        say: told when taking it needs some patience.
        on_loss: told, from a thread, that another job has taken it over, and which.
        period_s: seconds between renewals.
        silence_s: seconds without a renewal after which a holder counts as dead; a few periods.

    Attributes:
        token: what the record has while this lease is good.
    """

    def __init__(
        self,
        run: RunDir,
        *,
        say: Callable[[str], None],
        on_loss: Callable[[str], None],
        period_s: float = _PERIOD_S,
        silence_s: float = _SILENCE_S,
    ) -> None:
        self._run, self._say, self._on_loss = run, say, on_loss
        self._period_s, self._silence_s = period_s, silence_s
        self.token = os.urandom(8).hex()
        self._mine: dict[str, str | int | float] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "boot": _boot(),
            "since": time.time(),
            "token": self.token,
        }
        self._descriptor: int | None = None
        self._released = threading.Event()

    def take(self) -> None:
        """Takes the lease, from a dead holder if need be, and renews it from now on.

        Raises:
            InUseError: another job has it.
            OSError: the directory cannot be written.
        """
        self._descriptor = os.open(self._run.lock, os.O_RDWR | os.O_CREAT, 0o644)
        # Data-loading processes may outlive this one for a while; the lock must not.
        os.register_at_fork(after_in_child=self._close)
        try:
            is_sure = self._wait_for_others()
            self._mine["fence"] = _number(self._holder().get("fence")) + 1
            self._write()
            if not is_sure:
                self._settle()
        except BaseException:
            self._close()
            raise
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def check(self) -> None:
        """Makes sure of the lease, see `check`."""
        check(self._run, self.token)

    def release(self) -> None:
        """Gives the lease back; the next job need not wait."""
        self._released.set()
        with suppress(OSError):
            if self._holder().get("token") == self.token:
                write_json(self._run.holder, {**self._mine, RELEASED: time.time()})
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _wait_for_others(self) -> bool:
        """Returns when nobody else has it, or has shown no sign of life for long enough.

        Returns:
            Whether no other can have found the same just now.
        """
        started = heard = time.monotonic()
        beat, beats, said = _beat(self._run.holder), False, False
        while True:
            now, locked, holder = time.monotonic(), self._lock(), self._holder()
            if RELEASED in holder:
                holder = {}
            here = (holder.get("host"), holder.get("boot")) == (self._mine["host"], self._mine["boot"])
            if locked is not False and not holder:
                return locked is True
            if locked and here:
                # On one host a lock is the truth: its holder is dead.
                return True
            if (latest := _beat(self._run.holder)) != beat:
                beat, beats, heard = latest, True, now
            silent = now - heard >= self._silence_s
            if locked is not False and silent:
                return False
            # The server of a file system may keep the lock of a host that died for a while.
            lingers = locked is False and holder and not here and not beats
            if beats or (locked is False and now - started > (_LOCK_LINGERS_S if lingers else _PATIENCE_S)):
                raise in_use(self._run)
            if not said and now - started > min(_PATIENCE_S, self._silence_s) / 2:
                said = True
                self._say(f"run {self._run.name} was held by {_told(holder)}: waiting for a sign of life")
            time.sleep(_POLL_S)

    def _settle(self) -> None:
        """Two may have found it free or its holder silent: the one whose record stays has it."""
        time.sleep(min(2.0, self._silence_s / 4))
        try:
            self.check()
        except LeaseLost as error:
            raise in_use(self._run) from error

    def _lock(self) -> bool | None:
        """Whether the lock is ours; None where the file system has no locks."""
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise
        return True

    def _write(self) -> None:
        write_json(self._run.holder, self._mine)

    def _holder(self) -> dict[str, object]:
        return read_json(self._run.holder)

    def _renew(self) -> None:
        while not self._released.wait(self._period_s):
            try:
                self.check()
                # Its time only: that needs no space, and cannot overwrite what another may just have written.
                os.utime(self._run.holder)
            except LeaseLost as lost:
                self._on_loss(lost.strerror or str(lost))
                return
            except OSError:
                continue  # a storage that does not answer just now; others see our silence, and we theirs


def in_use(run: RunDir) -> InUseError:
    """The error for a run that another job trains; it names that one, if it has left its name."""
    holder = read_json(run.holder)
    told = f": {_told(holder)}" if holder and RELEASED not in holder else ""
    return InUseError(
        f"run {run.name} is being trained by another job{told}",
        "another run.name, run.fresh=true beside it, or wait until it has ended",
    )


def check(run: RunDir, token: str) -> None:
    """Makes sure of a lease, by a look at the record; to be called just before something is published.

    Args:
        run: the directory.
        token: the lease's; any process of its job may ask.

    Raises:
        LeaseLost: another job has it.
        OSError: that cannot be found out.
    """
    holder = read_json(run.holder)
    if not holder:
        raise LeaseLost(errno.ESTALE, f"{run.holder} is gone or damaged: another job may train in this run")
    if holder.get("token") != token:
        raise LeaseLost(errno.ESTALE, f"{_told(holder)} has taken this run over")


def _told(holder: dict[str, object]) -> str:
    if not holder:
        return "a process that has just begun"
    since = holder.get("since")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if isinstance(since, (int, float)) else "?"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {when}"


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _beat(path: Path) -> int:
    """The time of the last renewal; opened, since over NFS only opening asks the server."""
    try:
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_mtime_ns
    except OSError:
        return 0


def _boot() -> str:
    """Names this start of this machine's kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
