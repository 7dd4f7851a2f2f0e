"""One run per folder, also after a run was killed.

The file ``run.lock`` names the process that uses the folder. A record lock of the operating system on it decides
between runs that start at the same moment. Whether a process of the same machine is alive, the system knows; one of
another machine (a job that was queued again elsewhere) is known by its touching the file every few seconds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from aimnet2mult.errors import ConfigError, TrainingError
from aimnet2mult.files import machine_tag, process_exists

NAME = "run.lock"
BEAT = 10.0  # seconds between two touches
PATIENCE = 3.5  # beats without a touch after which a holder on another machine is taken for dead
_MAX_BYTES = 4096
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as written in the file."""

    host: str
    machine: str  # see `machine_tag`
    pid: int
    started: str  # when the process started, as the system says it: numbers of processes come again
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.since}"


class FolderLock:
    """A run folder that is held by this process; made by `folder_lock`."""

    def __init__(self, folder: Path, handle: int, holder: Holder) -> None:
        self.folder, self._handle, self._holder = folder, handle, holder
        self._released = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="run folder lock", daemon=True)
        self._beats.start()

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            try:
                os.utime(self._handle)
            except OSError:  # `check` says what is wrong, in the thread that trains
                return

    def check(self) -> None:
        """Make sure that the folder is still there and still ours.

        Raises
        ------
        TrainingError
            The folder was deleted or replaced, or another run took it over.
        """
        try:
            there = os.stat(self.folder / NAME).st_ino == os.fstat(self._handle).st_ino
        except OSError:
            there = False
        if not there:
            raise TrainingError(
                f"{self.folder}: the folder (or {NAME} in it) was deleted or replaced while this run used it; "
                "run again, and leave the folder alone meanwhile"
            )
        if _read(self._handle) != self._holder:
            raise TrainingError(
                f"{self.folder}: another run ({_read(self._handle)}) took this folder over, since this one gave no "
                "sign of life; leave it to that run"
            )

    def release(self) -> None:
        """Remove the lock file, when it is still ours."""
        self._released.set()
        self._beats.join()
        try:
            self.check()
            (self.folder / NAME).unlink()
        except (TrainingError, OSError):
            pass  # gone already, or somebody else's
        finally:
            os.close(self._handle)


@contextmanager
def folder_lock(folder: Path, say: Callable[[str], None]) -> Iterator[FolderLock]:
    """Hold `folder`, which must exist, for the run of the block.

    Parameters
    ----------
    folder
        Run folder.
    say
        Takes sentences for the user: that a lock of a dead run is taken over, or that one is being watched.

    Raises
    ------
    ConfigError
        Another run uses the folder.
    OSError
        The folder cannot be written.
    """
    lock = _acquire(folder, say)
    try:
        yield lock
    finally:
        lock.release()


def _acquire(folder: Path, say: Callable[[str], None]) -> FolderLock:
    path = folder / NAME
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            alone = _try_lock(handle)
            other = _read(handle)
            if alone is False:
                raise _in_use(folder, other)
            if other is not None:
                _refuse_living(folder, handle, other, say)
                say(f"note: {path} of a run that is dead ({other}) is taken over")
            # whoever released the lock just now removed the file that was opened here
            if os.path.exists(path) and os.stat(path).st_ino == os.fstat(handle).st_ino:
                holder = _write(handle)
                return FolderLock(folder, handle, holder)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _refuse_living(folder: Path, handle: int, other: Holder, say: Callable[[str], None]) -> None:
    """Find out whether the run named in a lock file is alive; refuse the folder when it is."""
    if other.machine == machine_tag():
        # also when the record lock was free: this very process never meets its own
        if process_exists(other.pid) and _started(other.pid) == other.started:
            raise _in_use(folder, other)
        return
    say(f"note: {folder / NAME} names {other}: watching it for {BEAT * PATIENCE:.0f} s for signs of life")
    touched = os.fstat(handle).st_mtime_ns
    end = time.monotonic() + BEAT * PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT / 4))
        if os.fstat(handle).st_mtime_ns != touched:
            raise _in_use(folder, other)


def _in_use(folder: Path, holder: Holder | None) -> ConfigError:
    who = "another run" if holder is None else f"another run ({holder})"
    return ConfigError(f"run.folder: {folder} is in use by {who}; wait for it, stop it, or choose another folder")


def _started(pid: int) -> str:
    """When a process of this machine started; empty where the system does not say, or when it is dead."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = text.rpartition(")")[2].split()  # the name of the program before may hold spaces and brackets
    except (OSError, ValueError):
        return ""
    # a zombie is dead; its number stays until its parent asks for it
    return "dead" if state == "Z" else rest[18]


def _try_lock(handle: int) -> bool | None:
    """Whether the lock is ours now; None where the file system has no locks."""
    try:
        # not flock: children made by fork share that, and workers outlive a killed run by seconds
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        return False
    return True


def _read(handle: int) -> Holder | None:
    """The holder named in the file; None when it is empty or damaged."""
    try:
        return Holder(**json.loads(os.pread(handle, _MAX_BYTES, 0)))
    except (ValueError, TypeError):
        return None


def _write(handle: int) -> Holder:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = Holder(
        socket.gethostname(), machine_tag(), os.getpid(), _started(os.getpid()), since, secrets.token_hex(8)
    )
    content = json.dumps(asdict(holder)).encode() + b"\n"
    os.ftruncate(handle, 0)
    os.pwrite(handle, content, 0)
    os.fsync(handle)
    return holder
