"""Signals: politely inside the loop, at once elsewhere, always with an exit code and a sentence."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimnet2mult.errors import DataError
from aimnet2mult.training.interrupt import StoppedError, StopRequest, exit_code


def kill(signum: int) -> None:
    os.kill(os.getpid(), signum)


def test_the_first_signal_waits_and_a_second_ctrl_c_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest().listening() as stop:
        assert not stop.made
        kill(signal.SIGINT)
        assert stop.made
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            kill(signal.SIGINT)
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
    assert "Ctrl-C again stops at once" in capfd.readouterr().err


def test_sigterm_waits_every_time() -> None:
    with StopRequest().listening() as stop:
        kill(signal.SIGTERM)
        kill(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM


def test_other_threads_leave_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with StopRequest().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def raising(error: BaseException) -> None:
    raise error


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C as in a terminal: jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("work", "code", "words"),
    [
        (lambda: None, 0, ""),
        (lambda: 5, 5, ""),
        (lambda: raising(DataError("a.h5 is empty; write it again")), 2, "error: a.h5 is empty; write it again"),
        (lambda: raising(OSError(28, "No space left on device", "a.pt")), 2, "error: a.pt: No space left on device"),
        (
            lambda: raising(StoppedError(signal.SIGTERM, Path("last.pt"))),
            143,
            "stopped by SIGTERM; the state is in last",
        ),
        (lambda: kill(signal.SIGINT), 130, "stopped at once by SIGINT; do it again"),
        (lambda: kill(signal.SIGTERM), 143, "stopped at once by SIGTERM; do it again"),
    ],
)
@pytest.mark.usefixtures("listening")
def test_exit_codes(work: object, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(work, "do it again") == code
    assert words in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_faults_of_the_program_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)
