"""Compiled code on disk that is loaded without numba getting ready to compile.

Getting ready takes half a second, in which numba imports all that it knows about Python and numpy, and SciPy too. Code
that is on disk needs nothing of it but the management of memory. This uses inner parts of numba, and only of versions
that it was tested with; with others, and for code that it cannot load, everything goes numba's own way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numba
from numba.core.caching import FunctionCache

TESTED: Final = ((0, 68),)  # major and minor version


def keep_on_disk(dispatcher: Any, function: Callable[..., Any]) -> None:
    """Let a function that numba is going to compile keep its code on disk, in the folder set at this moment."""
    if numba.version_info.short in TESTED:
        dispatcher._cache = _LightCache(function)
    else:
        dispatcher.enable_caching()


class _LightCache(FunctionCache):
    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load the code for a signature; None if there is none."""
        try:
            from numba.core.runtime.nrt import rtsys

            rtsys.initialize(target_context)
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception:  # numba's own way either works or says what is wrong
            return super().load_overload(sig, target_context)
