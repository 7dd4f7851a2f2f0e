"""One run per folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aimnet2mult.errors import ConfigError, TrainingError
from aimnet2mult.training import lock as module
from aimnet2mult.training.lock import NAME, folder_lock

HOLD = """
import sys, time
from pathlib import Path
from aimnet2mult.training.lock import folder_lock
with folder_lock(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def hold(folder: Path, said: list[str] | None = None) -> None:
    with folder_lock(folder, (said if said is not None else []).append) as lock:
        lock.check()


def test_a_released_folder_is_free_again(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        hold(tmp_path, said)
        assert not (tmp_path / NAME).exists()
    assert said == []


def test_a_second_run_is_refused(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(ConfigError, match=rf"is in use by another run \(process {other.pid} on .*\); wait for it"):
        hold(tmp_path)
    assert other.poll() is None


def test_a_second_run_of_the_same_process_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with folder_lock(tmp_path, print) as lock:
        for _ in range(2):
            with pytest.raises(ConfigError, match=rf"process {os.getpid()}"):
                hold(tmp_path)
        lock.check()
        # record locks of a process go with the first file handle that it closes; others are still kept out
        done = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True)
        assert "is in use by another run" in done.stderr
    hold(tmp_path)


def test_a_killed_run_leaves_nothing_that_stops_the_next(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    time.sleep(0.2)  # a zombie now: nobody has waited for it
    said: list[str] = []
    hold(tmp_path, said)
    assert len(said) == 1
    assert f"of a run that is dead (process {other.pid}" in said[0]


def written(folder: Path, **changes: object) -> None:
    content = {"host": "node7", "machine": "0" * 12, "pid": os.getpid(), "started": "1", "since": "then", "token": "x"}
    (folder / NAME).write_text(json.dumps(content | changes))


def test_a_number_that_came_again_is_another_process(tmp_path: Path) -> None:
    written(tmp_path, machine=module.machine_tag())
    hold(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[1]", b'{"host": 1}'])
def test_damaged_files_are_taken_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    hold(tmp_path)


def test_a_dead_run_of_another_machine_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.1)
    written(tmp_path)
    said: list[str] = []
    hold(tmp_path, said)
    assert ["watching it" in said[0], "is taken over" in said[1]] == [True, True]


def test_a_live_run_of_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.5)
    written(tmp_path)
    end = threading.Event()

    def touch() -> None:
        while not end.wait(0.05):
            os.utime(tmp_path / NAME)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="on node7"):
            hold(tmp_path)
    finally:
        end.set()
        thread.join()
    assert "node7" in (tmp_path / NAME).read_text()


def test_the_holder_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    with folder_lock(tmp_path, print):
        first = (tmp_path / NAME).stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while (tmp_path / NAME).stat().st_mtime_ns == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / NAME).stat().st_mtime_ns > first


def test_a_folder_that_is_lost_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with folder_lock(folder, print) as lock:
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(TrainingError, match="was deleted or replaced"):
            lock.check()
        folder.mkdir()
        written(folder)
        with pytest.raises(TrainingError, match="was deleted or replaced"):
            lock.check()
    # what is not ours is left alone
    assert (folder / NAME).exists()


def test_a_folder_that_another_run_took_is_noticed(tmp_path: Path) -> None:
    with folder_lock(tmp_path, print) as lock:
        written(tmp_path)
        with pytest.raises(TrainingError, match=r"another run \(process .* on node7.*\) took this folder over"):
            lock.check()
    assert (tmp_path / NAME).exists()
