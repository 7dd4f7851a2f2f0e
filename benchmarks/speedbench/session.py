"""A program being measured: its worker process, seen from outside."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Place:
    """Where a program runs and what it is given."""

    name: str  # of its adapter
    title: str  # for tables
    python: Path
    model: Path  # the weights in its own format
    folder: Path  # for its files and log
    memory: int  # bytes that it may take


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a process of any program."""
    counts = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    # nothing is to be compiled in the background while others are measured
    fixed = {"PYTHONPATH": str(BENCHMARKS), "AIMNET2MULT_NO_WARMUP": "1", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **counts, **fixed}


class Session:
    """A worker process that answers requests; started on the first one, and anew when it died."""

    def __init__(self, place: Place, threads: int) -> None:
        self.place, self._threads = place, threads
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The worker's answer, or ``{"failed": reason}`` where none comes within so many seconds."""
        if self._process is None:
            self._process = self._start()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._died()
        return self._read(seconds)

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        place = self.place
        with (place.folder / "worker.log").open("ab") as log:
            return subprocess.Popen(
                [str(place.python), "-m", "speedbench.worker", place.name, str(place.model), str(place.memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(self._threads),
                bufsize=0,
            )

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            self.close()
            return {"failed": f"no answer within {seconds:.0f} s"}
        line = self._process.stdout.readline()  # written in one go
        return json.loads(line) if line else self._died()

    def _died(self) -> dict[str, Any]:
        assert self._process is not None
        self._process.wait()
        code, self._process = self._process.returncode, None
        return {"failed": f"ended with status {code}; see {self.place.folder / 'worker.log'}"}
