"""aimnet2mult: multi-fidelity AIMNet2 potentials, from labelled data to ASE.

The public names are imported on first use, so that ``import aimnet2mult`` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aimnet2mult.collection import collection_paused

if TYPE_CHECKING:
    from aimnet2mult.calculators.ase import AIMNet2MultCalculator
    from aimnet2mult.calculators.cautions import NoveltyWarning
    from aimnet2mult.calculators.structures import evaluate
    from aimnet2mult.models.files import load_potential
    from aimnet2mult.training.compile import compile_potential

__version__ = "0.1.0"
__all__ = [
    "AIMNet2MultCalculator",
    "NoveltyWarning",
    "__version__",
    "compile_potential",
    "evaluate",
    "load_potential",
]

_HOMES = {
    "AIMNet2MultCalculator": "aimnet2mult.calculators.ase",
    "NoveltyWarning": "aimnet2mult.calculators.cautions",
    "compile_potential": "aimnet2mult.training.compile",
    "evaluate": "aimnet2mult.calculators.structures",
    "load_potential": "aimnet2mult.models.files",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        with collection_paused():
            home = import_module(_HOMES[name])
        return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
