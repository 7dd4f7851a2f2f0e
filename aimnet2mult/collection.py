"""Python's collection of reference cycles, paused while much is made that stays.

It runs again and again while modules and potentials are loaded, each time through everything that is there, and finds
nothing: a fifth of a second of the first energy of a process.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """No collection inside, unless another thread asks for it; afterwards as before."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
