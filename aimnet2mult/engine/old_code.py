"""Compiled code of other versions of the package, which nobody uses any more."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

DAYS_KEPT: Final = 30
_DAY: Final = 86_400.0  # s
_NAME: Final = re.compile(r"[0-9a-f]{16}(\.gone)?")  # of a folder, and while it is being removed


def note_use(mark: Path) -> None:
    """Write down, by the time of this file, that the folder it is in is used; once a day is enough."""
    with suppress(OSError):
        if time.time() - mark.stat().st_mtime > _DAY:
            os.utime(mark)


def remove_unused(folder: Path) -> list[Path]:
    """Remove the folders beside `folder` that hold compiled code and were not used for a month.

    Every checkout and installation that is in use notes this in its folder, so that none loses its code to another.

    Parameters
    ----------
    folder
        Folder of the compiled code of this version; stays.

    Returns
    -------
    list of Path
        What was removed.
    """
    limit, removed = time.time() - DAYS_KEPT * _DAY, []
    for other in sorted(folder.parent.glob("*")):
        if other == folder or other.is_symlink() or not other.is_dir() or not _NAME.fullmatch(other.name):
            continue
        if _last_use(other) < limit and _remove(other):
            removed.append(other)
    return removed


def _last_use(folder: Path) -> float:
    """The newest time of anything in a folder; that of the present where it cannot be told."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        return time.time()


def _remove(folder: Path) -> bool:
    """Remove a folder; whoever looks into it meanwhile finds all of it or nothing."""
    gone = folder if folder.suffix else folder.with_suffix(".gone")
    try:
        if gone != folder:
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
        shutil.rmtree(gone)
    except OSError:
        return False
    return True
