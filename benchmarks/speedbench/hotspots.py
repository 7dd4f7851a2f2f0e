"""Where the time of a call goes, function by function."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path

TOP = 12  # functions


def hotspots(call: Callable[[], object], prepare: Callable[[], object], calls: int) -> list[tuple[str, float]]:
    """Functions with the largest shares of the time that is spent in them and not in what they call.

    `prepare` goes before each call and does not count. Compiled kernels count as part of the Python function that
    calls them.
    """
    profile = cProfile.Profile()
    for _ in range(calls):
        prepare()
        profile.runcall(call)
    found = {_name(key): 0.0 for key in pstats.Stats(profile).stats}  # type: ignore[attr-defined]
    for key, (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        found[_name(key)] += own
    total = sum(found.values())
    return [(name, found[name] / total) for name in sorted(found, key=found.__getitem__, reverse=True)[:TOP]]


def _name(key: tuple[str, int, str]) -> str:
    """Module and function; built-in functions have no file."""
    file, _, function = key
    return function if file == "~" else f"{Path(file).parent.name}/{Path(file).stem}.{function}"
