"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STEM = 40  # characters of the target's name in that of a temporary file: names have 255 bytes at most
_OLD = 24 * 3600.0  # seconds after which nobody on another machine still writes a temporary file
_TEMPORARY = re.compile(r"\..*\.part-(?P<machine>[0-9a-f]{12})-(?P<pid>\d{1,9})-[0-9a-f]{8}(\.[^.]*)?")


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; rename it to `target` when the block ends well.

    What a killed process left behind of the same target is removed first.

    Parameters
    ----------
    target
        Final path. Its folder is made when it does not exist.

    Yields
    ------
    Path
        A path in the same folder and with the same suffix, to be written by the caller.

    Raises
    ------
    OSError
        The folder cannot be written; `target` keeps what it held before.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, target.stem)
    mark = f".part-{machine_tag()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.parent / f".{target.stem[:_STEM]}{mark}{target.suffix}"
    # not by tempfile: its files are readable by their owner only, whatever the user's umask says
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_text(target: str | Path, text: str) -> None:
    """Write `text` to `target` in UTF-8, whole or not at all (see `atomic_path`)."""
    atomic_write_bytes(target, text.encode())


def atomic_write_bytes(target: str | Path, content: bytes) -> None:
    """Write `content` to `target`, whole or not at all (see `atomic_path`)."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def atomic_copy(source: str | Path, target: str | Path) -> None:
    """Copy the content of `source` to `target`, whole or not at all (see `atomic_path`)."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def remove_leftovers(folder: str | Path, stem: str | None = None) -> int:
    """Remove temporary files of `atomic_path` that nobody writes any more.

    Files of a process of this machine go when it is dead, those of another machine after a day.

    Parameters
    ----------
    folder
        Where to look; folders below it are left alone.
    stem
        Only those of targets with this name (without suffix); None: all.

    Returns
    -------
    int
        How many were removed.
    """
    beginning = "." if stem is None else f".{stem[:_STEM]}.part-"
    removed = 0
    for path in Path(folder).iterdir():
        match = _TEMPORARY.fullmatch(path.name) if path.name.startswith(beginning) else None
        if match is None:
            continue
        # another process may remove or rename it at the same time
        with contextlib.suppress(FileNotFoundError):
            if match["machine"] == machine_tag():
                dead = not process_exists(int(match["pid"]))
            else:
                dead = time.time() - path.stat().st_mtime > _OLD
            if dead:
                path.unlink()
                removed += 1
    return removed


def machine_tag() -> str:
    """Twelve letters for the set of processes in which a process number means one process.

    It follows from host name, boot and, in containers, the name space of process numbers.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux only
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def process_exists(pid: int) -> bool:
    """Whether a process with this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
