"""Compiled code that is loaded without numba getting ready to compile; and numba's own way where that is not known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba", reason="the kernels need the optional package numba")

import numba
from numba.core.caching import FunctionCache

from aimnet2mult.engine import jit, light_cache, warmup

# what numba imports to get ready
READY = "numba.np.linalg"
USE = f"""
import sys
from aimnet2mult.engine.exercise import exercises
for step in exercises():
    step.run()
print({READY!r} in sys.modules)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where code is kept in this test."""
    monkeypatch.setattr(jit, "cache_directory", lambda: tmp_path / "code")
    return tmp_path / "code"


def double(x: float) -> float:
    return 2.0 * x


def hits(function: Any) -> int:
    """How often its code was found on disk."""
    return sum(function.stats.cache_hits.values())


def test_the_version_in_use_was_tested() -> None:
    """The pinned version of numba is one of those for which the quick way is taken."""
    assert numba.version_info.short in light_cache.TESTED


def test_every_kernel_is_loaded_without_getting_ready() -> None:
    warmup.compile_kernels(lambda line: None)
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_code_is_found_again(folder: Path) -> None:
    first, second = jit.compiled(double), jit.compiled(double)
    assert (first(2.0), hits(first)) == (4.0, 0)
    assert list(folder.rglob("*.nbc"))
    assert (second(2.0), hits(second)) == (4.0, 1)
    assert (second(2), hits(second)) == (4, 1), "other types are compiled"


@pytest.mark.usefixtures("folder")
def test_other_versions_go_their_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    jit.compiled(double)(2.0)
    monkeypatch.setattr(light_cache, "TESTED", ())
    other = jit.compiled(double)
    assert type(other._cache) is FunctionCache
    assert (other(2.0), hits(other)) == (4.0, 1)


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_loaded_is_left_to_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    jit.compiled(double)(2.0)
    load, calls = FunctionCache._load_overload, []

    def once(self: FunctionCache, sig: Any, target_context: Any) -> Any:
        calls.append(sig)
        if len(calls) == 1:
            raise NotImplementedError
        return load(self, sig, target_context)

    monkeypatch.setattr(FunctionCache, "_load_overload", once)
    again = jit.compiled(double)
    assert (again(2.0), hits(again), len(calls)) == (4.0, 1, 2)
