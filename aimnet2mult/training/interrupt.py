"""Stopping a run politely: after the step under way, with its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class StoppedError(Exception):
    """Training stopped on a signal, after its state was saved."""

    def __init__(self, signum: int, path: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; the state is in {path}")
        self.signum = signum
        self.path = path


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
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        old = {signum: signal.signal(signum, self._receive) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        if self.made and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
