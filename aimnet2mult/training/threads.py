"""Compiled kernels on several threads: as many as torch uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Span = tuple[int, int]  # first and one past the last


class Threads:
    """Runs kernels on several ranges at once. They do without the interpreter lock, so that threads are enough."""

    def __init__(self) -> None:
        self.count = torch.get_num_threads()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.count, thread_name_prefix="aimnet2mult-kernels")

    def run(self, spans: Sequence[Span], kernel: Callable[..., Any], *arguments: object) -> list[Any]:
        """Results of ``kernel(first, last, *arguments)`` for every span, in their order."""
        if self.count == 1 or len(spans) < 2:
            return [kernel(first, last, *arguments) for first, last in spans]
        tasks = [self._pool.submit(kernel, first, last, *arguments) for first, last in spans]
        return [task.result() for task in tasks]

    def rows(self, first: int, last: int, step: int) -> list[Span]:
        """A range in about equal parts, one for each thread, that begin at multiples of `step` from `first`."""
        if self.count == 1:
            return [(first, last)]
        n_steps = -(-(last - first) // step)
        limits = [min(last, first + n_steps * k // self.count * step) for k in range(self.count + 1)]
        return [(a, b) for a, b in pairwise(limits) if b > a]

    def molecules(self, offsets: NDArray[np.int64], n_atoms: int) -> list[Span]:
        """The first `n_atoms` atoms in about equal parts of whole molecules, which begin at `offsets`."""
        wanted = np.arange(self.count + 1) * n_atoms // self.count
        limits = offsets[np.searchsorted(offsets, wanted)].tolist()
        return [(a, b) for a, b in pairwise(limits) if b > a]
