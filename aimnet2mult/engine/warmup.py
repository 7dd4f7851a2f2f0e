"""The engine's compiled code on disk: is it there, making it now, having it made in the background.

Compiling takes about a minute of one core, once for each machine and version of the package. Nobody who evaluates
potentials should wait for it unasked: while the code is not there, they are evaluated by their own programs, and
another process compiles. What only training needs is compiled last.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from aimnet2mult.engine.old_code import note_use, remove_unused

# what compiled code is for
EVALUATION: Final = "evaluation"
TRAINING: Final = "training"
NO_WARMUP: Final = "AIMNET2MULT_NO_WARMUP"  # set to anything: no process is started in the background
_LOG: Final = logging.getLogger("aimnet2mult")
_PATIENCE: Final = 900.0  # s after which a process of another machine that was to compile is taken for dead
_PROGRAM: Final = "from aimnet2mult.engine.warmup import compile_in_background; compile_in_background()"


def ready() -> bool:
    """Whether the engine can be used for evaluation at once; if only its compiled code is missing, this is set going.

    Without the optional package numba there is no engine.
    """
    if find_spec("numba") is None or not _usable():
        return False
    if is_compiled(EVALUATION):
        return True
    if sys.executable and not os.environ.get(NO_WARMUP) and _take(_lock()):
        _LOG.warning(
            "the fast kernels are being compiled for this machine in the background, once, in about a minute; "
            "calculators made until then are slower ('aimnet2mult kernels' compiles at once, %s=1 prevents both)",
            NO_WARMUP,
        )
        # it waits for the process, so that none is left behind, and does not keep the interpreter from ending
        threading.Thread(target=_run_background, daemon=True).start()
    return False


def compile_kernels(report: Callable[[str], None], purposes: Sequence[str] = (EVALUATION, TRAINING)) -> Path:
    """Compile what is not yet on disk, unless another process is at it, and return the folder where it lies.

    Parameters
    ----------
    report
        Is told how far it has got, in one line at a time.
    purposes
        `EVALUATION`, `TRAINING` or both.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    from aimnet2mult.engine.jit import cache_directory

    folder, lock = cache_directory(), _lock()
    folder.mkdir(parents=True, exist_ok=True)
    waiting = False
    while not all(map(is_compiled, purposes)):
        if _take(lock):
            try:
                _compile(report, purposes)
            finally:
                lock.unlink(missing_ok=True)
        else:
            if not waiting:
                report("another process is compiling them; waiting for it")
            waiting = True
            time.sleep(0.2)
    return folder


def compile_in_background() -> None:
    """What the process in the background does, whose parent has taken the lock."""
    lock = _lock()
    _sign(lock)
    if hasattr(os, "nice"):
        os.nice(19)
    try:
        _compile(lambda line: None, (EVALUATION, TRAINING))
    finally:
        lock.unlink(missing_ok=True)


def _compile(report: Callable[[str], None], purposes: Sequence[str]) -> None:
    from aimnet2mult.engine.exercise import exercises

    steps = [step for step in exercises() if step.purpose in purposes]
    for number, step in enumerate(steps, 1):
        report(f"{number} of {len(steps)}: {step.name}")
        step.run()
        if number == len(steps) or steps[number].purpose != step.purpose:
            _write_mark(_mark(step.purpose))
    remove_unused(_lock().parent)


def _write_mark(mark: Path) -> None:
    files = sorted(str(path.relative_to(mark.parent)) for path in mark.parent.rglob("*.nb?"))
    unfinished = mark.with_suffix(f".{os.getpid()}")
    unfinished.write_text("\n".join(files), encoding="utf-8")
    unfinished.replace(mark)


def _run_background() -> None:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # it goes on when the program that started it ends
        )
        said = [] if done.returncode == 0 else done.stderr.strip().splitlines()[-1:] or ["no message"]
    except OSError as error:
        said = [str(error)]
    if said:
        _lock().unlink(missing_ok=True)
        _LOG.warning("the fast kernels could not be compiled: %s", said[0])


def _usable() -> bool:
    """Whether numba compiles, and keeps what it compiles."""
    try:
        import numba

        from aimnet2mult.engine.jit import cache_directory
    except ImportError as error:  # it refuses versions of numpy that it does not know
        _LOG.warning("there are no fast kernels, because numba cannot be imported (%s)", error)
        return False
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return False
    try:
        folder = cache_directory()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where the home of this user is
        return False
    return os.access(folder, os.W_OK)


def is_compiled(purpose: str) -> bool:
    """Whether everything that was compiled for a purpose on a machine of this kind is still there."""
    mark = _mark(purpose)
    try:
        files = mark.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    note_use(mark)
    return all((mark.parent / name).is_file() for name in files)


def _mark(purpose: str) -> Path:
    """A file that is there when everything for a purpose has been compiled for this processor and these versions."""
    folder, kind = _kind()
    return folder / f"{purpose}-{kind}"


def _kind() -> tuple[Path, str]:
    """Folder of the compiled code, and a name for this processor and these versions.

    numba keeps apart what it has compiled from sources in different places, and does not use it once their files have
    been written anew, be they the same word for word: another installation of the same version counts as another one.
    """
    import llvmlite.binding as llvm
    import numba

    from aimnet2mult.engine.jit import cache_directory

    sources = sorted(Path(__file__).resolve().parent.glob("*.py"))
    kind = [
        numba.__version__,
        platform.python_version(),
        str(numba.config.CPU_NAME or llvm.get_host_cpu_name()),  # type: ignore[attr-defined]
        str(numba.config.CPU_FEATURES or llvm.get_host_cpu_features().flatten()),  # type: ignore[attr-defined]
        *(f"{path} {path.stat().st_mtime_ns}" for path in sources),
    ]
    return cache_directory(), hashlib.sha256(" ".join(kind).encode()).hexdigest()[:16]


def _lock() -> Path:
    """A file that is there while a process compiles; it says which."""
    folder, kind = _kind()
    return folder / f"{kind}.lock"


def _take(lock: Path) -> bool:
    """Make the file and sign it, unless another process that is still at work has done so."""
    if _is_abandoned(lock):
        lock.unlink(missing_ok=True)
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError:
        return False
    _sign(lock)
    return True


def _sign(lock: Path) -> None:
    lock.write_text(f"{platform.node()} {os.getpid()}", encoding="utf-8")


def _is_abandoned(lock: Path) -> bool:
    """Whether the process that made the file has died: known of one on this machine, assumed of others in time."""
    try:
        old = time.time() - lock.stat().st_mtime > _PATIENCE
        node, _, number = lock.read_text(encoding="utf-8").rpartition(" ")
    except OSError:
        return False
    if node != platform.node() or not number.isdigit() or sys.platform == "win32":
        return old
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return old
    return False
