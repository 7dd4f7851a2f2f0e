"""Files that are written whole or not at all, and what killed writers leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aimnet2mult.files import (
    atomic_copy,
    atomic_path,
    atomic_write_bytes,
    atomic_write_text,
    machine_tag,
    process_exists,
    remove_leftovers,
)


@pytest.fixture
def dead() -> int:
    """Number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_target_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "new folder/a.txt"
    atomic_write_text(target, "é")
    assert target.read_bytes() == "é".encode()
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("two")
        assert target.read_text() == "é"
    assert target.read_text() == "two"
    atomic_copy(target, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_content(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_permissions_follow_the_users_mask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_long_names(tmp_path: Path) -> None:
    # file systems allow 255 bytes
    target = tmp_path / ("x" * 250 + ".pt")
    atomic_write_bytes(target, b"x")
    assert target.read_bytes() == b"x"


def test_leftovers_of_the_dead_go_and_those_of_others_stay(tmp_path: Path, dead: int) -> None:
    assert not process_exists(dead)
    assert process_exists(os.getpid())
    mine, other = machine_tag(), "0" * 12
    assert len(mine) == 12
    go = [f".last.part-{mine}-{dead}-0123abcd.pt", f".a.b.part-{mine}-{dead}-0123abcd"]
    old = f".last.part-{other}-{dead}-0123abcd.pt"
    stay = [f".last.part-{mine}-{os.getpid()}-0123abcd.pt", f".last.part-{other}-{dead}-ffffffff.pt"]
    stay += ["last.pt", ".note.txt", f".last.part-{mine}-x-0123abcd.pt"]
    for name in (*go, old, *stay):
        (tmp_path / name).touch()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / old, (two_days_ago, two_days_ago))
    assert remove_leftovers(tmp_path, "best") == 0
    assert remove_leftovers(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)


def test_writing_removes_what_a_killed_writer_of_the_same_target_left(tmp_path: Path, dead: int) -> None:
    left = tmp_path / f".last.part-{machine_tag()}-{dead}-0123abcd.pt"
    other = tmp_path / f".best.part-{machine_tag()}-{dead}-0123abcd.pt"
    for path in (left, other):
        path.touch()
    atomic_write_bytes(tmp_path / "last.pt", b"x")
    assert not left.exists()
    assert other.exists()
