"""Stopping politely: a run after the step under way, everything else at once, each with a sentence how to go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from aimnet2mult.errors import AIMNet2MultError

REPEAT = "run the same command again"
AGAIN = f"{REPEAT} to go on"


class StoppedError(Exception):
    """Training stopped on a signal, after its state was saved."""

    def __init__(self, signum: int, path: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; the state is in {path}")
        self.signum = signum
        self.path = path


class StopNow(KeyboardInterrupt):
    """SIGTERM came: stop as on Ctrl-C, so that temporary files and locks are cleared."""


class StopRequest:
    """Remembers SIGINT and SIGTERM; the loop stops after the step under way. A second SIGINT stops at once."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @property
    def made(self) -> bool:
        """Whether a signal came."""
        return self.signum is not None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals inside the block (in the main thread; elsewhere Python allows no handlers)."""
        with _handling(self._receive, signal.SIGINT, signal.SIGTERM):
            yield self

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        if self.made and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.made and signum == signal.SIGINT:
            # not by print: a handler may come in the middle of another print
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        self.signum = signum


@contextmanager
def terminating() -> Iterator[None]:
    """Make SIGTERM raise `StopNow` inside the block, instead of ending the process with its files half written."""
    with _handling(_raise, signal.SIGTERM):
        yield


def _raise(signum: int, _frame: FrameType | None) -> None:
    raise StopNow


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None], *signums: int) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield
    finally:
        for signum, former in old.items():
            signal.signal(signum, former)


def exit_code(work: Callable[[], int | None], again: str = AGAIN) -> int:
    """Do the work of a command line and turn its end into an exit code.

    Parameters
    ----------
    work
        May give an exit code of its own; None means 0.
    again
        How to go on after a signal.

    Returns
    -------
    int
        0: done. 2: an error, told as ``error: ...`` on stderr. 130 and 143: stopped by SIGINT (Ctrl-C) and SIGTERM,
        with a sentence how to go on. 141: nobody reads the output any more.
    """
    try:
        with terminating():
            return work() or 0
    except AIMNet2MultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StoppedError as stopped:
        print(f"{stopped}; {again}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt as stopped:
        signum = signal.SIGTERM if isinstance(stopped, StopNow) else signal.SIGINT
        print(f"stopped at once by {signum.name}; {again}", file=sys.stderr)
        return 128 + signum
    except BrokenPipeError:
        # what is still in the buffer goes nowhere, instead of failing once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}; mend it and {REPEAT}", file=sys.stderr)
        return 2
