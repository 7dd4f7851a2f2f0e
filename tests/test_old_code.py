"""Folders of compiled code that nobody uses: which are removed, and which never."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from aimnet2mult.engine.old_code import DAYS_KEPT, note_use, remove_unused

DAY = 86_400.0
OWN, OTHER = "0123456789abcdef", "fedcba9876543210"


def folder(base: Path, name: str, days: float) -> Path:
    """A folder of compiled code, all of it so old."""
    inner = base / name / "engine"
    inner.mkdir(parents=True)
    for path in (inner / "kernel.nbc", base / name / "evaluation-0"):
        path.write_text("code")
    for path in (*(base / name).rglob("*"), base / name):
        set_age(path, days)
    return base / name


def set_age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def test_what_was_not_used_for_long_goes(tmp_path: Path) -> None:
    own, other = folder(tmp_path, OWN, 10 * DAYS_KEPT), folder(tmp_path, OTHER, DAYS_KEPT + 1)
    half_removed = folder(tmp_path, f"{'a' * 16}.gone", DAYS_KEPT + 1)
    assert remove_unused(own) == [half_removed, other]
    assert list(tmp_path.iterdir()) == [own], "its own folder stays, however old"
    assert (own / "engine" / "kernel.nbc").exists()


def test_what_is_used_stays(tmp_path: Path) -> None:
    """Another checkout has compiled long ago and still notes its use, or has compiled something lately."""
    own, other = folder(tmp_path, OWN, 0), folder(tmp_path, OTHER, 2 * DAYS_KEPT)
    note_use(other / "evaluation-0")
    assert remove_unused(own) == []
    set_age(other / "evaluation-0", DAYS_KEPT + 1)
    set_age(other / "engine" / "kernel.nbc", DAYS_KEPT - 1)
    assert remove_unused(own) == []
    set_age(other / "engine" / "kernel.nbc", DAYS_KEPT + 1)
    assert remove_unused(own) == [other]


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    own = folder(tmp_path / "aimnet2mult", OWN, 0)
    beside = own.parent
    strange = [folder(beside, name, 1000) for name in ("numba", OTHER[:-1], f"{OTHER}.kept", OTHER.upper())]
    elsewhere = folder(tmp_path, "elsewhere", 1000)
    link, file = beside / OTHER, beside / ("a" * 16)
    link.symlink_to(elsewhere)
    file.write_text("a file")
    set_age(file, 1000)
    assert remove_unused(own) == []
    assert all(path.exists() for path in (*strange, elsewhere, link, file))


def test_use_is_noted_once_a_day(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    set_age(mark, 0.5)
    before = mark.stat().st_mtime
    note_use(mark)
    assert mark.stat().st_mtime == before
    set_age(mark, 2)
    note_use(mark)
    assert mark.stat().st_mtime == pytest.approx(time.time(), abs=600)
    note_use(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_what_cannot_be_removed_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = folder(tmp_path, OWN, 0), folder(tmp_path, OTHER, 1000)

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError

    monkeypatch.setattr(Path, "rename", refuse)
    assert remove_unused(own) == []
    assert other.exists()
