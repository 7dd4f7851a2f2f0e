"""Compilation of the engine's functions, and where the compiled code is kept between runs."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from aimnet2mult.engine.light_cache import keep_on_disk

# what compiled functions are given
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_Function = TypeVar("_Function", bound=Callable[..., Any])


@cache
def cache_directory() -> Path:
    """Folder of the compiled code of these very sources.

    It lies in ``NUMBA_CACHE_DIR`` if that is set, otherwise among the caches of the user. numba itself would notice
    changes of the file that holds a function only, not of the files whose functions it calls.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    base = Path(chosen) if chosen else _user_caches()
    return base / "aimnet2mult" / digest.hexdigest()[:16]


def _user_caches() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def part(function: _Function) -> _Function:
    """Compile a function that only compiled functions call, together with them."""
    return _part(function, False)


def reordered(function: _Function) -> _Function:
    """The same, with sums in any order and products added in one rounding: loops over sums become vector code."""
    return _part(function, {"reassoc", "contract", "nsz"})


def _part(function: _Function, fastmath: bool | set[str]) -> _Function:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    compile_it = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)  # type: ignore[call-overload]
    result: _Function = compile_it(function)
    return result


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call; it runs without the interpreter lock, and divides as numpy does."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    folder = cache_directory()
    if not _is_writable(folder):
        return numba.njit(**options)(function)
    config: Any = numba.config
    before = config.CACHE_DIR
    # numba asks for the folder while it decorates; other people's functions keep theirs
    config.CACHE_DIR = str(folder)
    try:
        dispatcher: Any = numba.njit(**options)(function)
        keep_on_disk(dispatcher, function)
        return dispatcher
    finally:
        config.CACHE_DIR = before
