"""Measuring time: samples of (CPU seconds, wall seconds)."""

from __future__ import annotations

import time
from collections.abc import Callable

Sample = tuple[float, float]  # CPU seconds of all threads of this process, wall seconds

WARM_CALLS = 6
WARM_SECONDS = 3.0
MAX_CALLS = 50  # in one request: structures drift a little with every call


class Clock:
    """Time since the last look."""

    def __init__(self) -> None:
        self._last = _now()

    def lap(self) -> Sample:
        """CPU and wall seconds since the start or the last lap."""
        now = _now()
        cpu, wall = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return cpu, wall


def warm_up(call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> None:
    """Call until compilers and allocators should have settled, or `WARM_SECONDS` are over."""
    started = time.perf_counter()
    for _ in range(WARM_CALLS):
        prepare()
        call()
        if time.perf_counter() - started > WARM_SECONDS:
            return


def repeat(call: Callable[[], object], seconds: float, prepare: Callable[[], object] = lambda: None) -> list[Sample]:
    """Times of calls for about so many wall seconds, at least of one; `prepare` goes before each, off the clock."""
    started = time.perf_counter()
    samples: list[Sample] = []
    while not samples or (time.perf_counter() - started < seconds and len(samples) < MAX_CALLS):
        prepare()
        clock = Clock()
        call()
        samples.append(clock.lap())
    return samples


def _now() -> Sample:
    return time.process_time(), time.perf_counter()
