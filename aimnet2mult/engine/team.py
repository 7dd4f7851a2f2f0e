"""Several threads in one compiled function: who takes which block, and waiting for one another.

All threads run the same function on the same arrays. Between two meetings each takes blocks of atoms until none is
left; what a block writes does not depend on who took it, so results do not depend on the number of threads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import count
from threading import Thread
from typing import Any, Final, TypeVar

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from aimnet2mult.engine.jit import I64, part

# numbers shared by a team: its size (0: not yet known, negative: given up), then two for each phase between meetings:
# blocks taken, threads that are done
_SIZE: Final = 0
_FIRST: Final = 8
# more are not used: every pass has four phases at most, and there are at most 16 passes
_PHASES: Final = 80
_MOST_PARTS: Final = 16  # each has sums of its own in memory
_Result = TypeVar("_Result")
# tells the system that this thread has nothing to do just now
_pause = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


def _declare_add(context: Any, numbers: types.Type, position: types.Type, summand: types.Type) -> Any:
    """Add to one of the shared int64 numbers and return what it was before, in one step for all threads."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> ir.Value:
        array = context.make_array(signature.args[0])(context, builder, values[0])
        pointer = builder.gep(array.data, [values[1]], inbounds=True)
        return builder.atomic_rmw("add", pointer, values[2], "seq_cst")

    return types.int64(types.Array(types.int64, 1, "C"), types.int64, types.int64), generate


_add: Any = intrinsic(_declare_add)


@part
def team_size(team: I64) -> int:
    """Number of threads, as soon as it is known; negative if the work was given up."""
    while _add(team, _SIZE, 0) == 0:
        _pause()
    return _add(team, _SIZE, 0)


@part
def take(team: I64, phase: int) -> int:
    """Number of a block that nobody has taken in this phase, counted from 0."""
    return _add(team, _FIRST + 2 * phase, 1)


@part
def meet(team: I64, phase: int) -> int:
    """Wait until all threads are done with a phase; returns the number of the next one."""
    done = _FIRST + 2 * phase + 1
    _add(team, done, 1)
    while _add(team, done, 0) < team_size(team):
        _pause()
    return phase + 1


def run_together(function: Callable[[I64, int], None], n_threads: int) -> None:
    """Call ``function(team, rank)`` in `n_threads` threads, fewer if no more can be had; this one has rank 0."""
    team = np.zeros(_FIRST + 2 * _PHASES, dtype=np.int64)
    helpers = [Thread(target=function, args=(team, rank), daemon=True) for rank in range(1, n_threads)]
    started: list[Thread] = []
    try:
        _start(helpers, started)
        team[_SIZE] = 1 + len(started)
        function(team, 0)
    except BaseException:
        team[_SIZE] = -1
        raise
    finally:
        for helper in started:
            helper.join()


def _start(helpers: Sequence[Thread], started: list[Thread]) -> None:
    """Start threads as long as there are more to be had, and list those that have been."""
    try:
        for helper in helpers:
            helper.start()
            started.append(helper)
    except RuntimeError:
        pass


def count_parts(work: int, least: int) -> int:
    """Into how many parts to divide work, each of at least `least`: the same for any number of threads.

    Sums are added up part by part: so results do not depend on the number of threads either.
    """
    return min(_MOST_PARTS, max(1, work // least))


def in_parts(function: Callable[[int], _Result], n_parts: int) -> list[_Result]:
    """``[function(part) for part in range(n_parts)]`` in as many threads as PyTorch uses, or as there can be.

    The function is compiled, and does not wait for other parts. What it raises in one of the threads is raised here.
    """
    numbers = count()
    found: dict[int, _Result] = {}
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not failures and (number := next(numbers)) < n_parts:
                found[number] = function(number)
        except BaseException as error:
            failures.append(error)

    helpers = [Thread(target=work, daemon=True) for _ in range(min(torch.get_num_threads(), n_parts) - 1)]
    started: list[Thread] = []
    _start(helpers, started)
    work()
    for helper in started:
        helper.join()
    if failures:
        raise failures[0]
    return [found[number] for number in range(n_parts)]
