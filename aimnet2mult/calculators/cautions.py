"""What a calculator says once: results that are defined, but that may not mean what they seem to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from aimnet2mult.calculators.evaluation import Evaluation
from aimnet2mult.calculators.inputs import System
from aimnet2mult.calculators.members import Committee

CHARGED_CELL = (
    "the cell is charged: its long-range Coulomb energy includes a uniform neutralising background, so that energies "
    "and stress of cells with different charges or sizes cannot be compared directly"
)


class NoveltyWarning(UserWarning):
    """A structure lies outside of what its potential was trained on."""


class Cautions:
    """Warnings of one calculator, each given at most once."""

    def __init__(self) -> None:
        self._background_said = False
        self._novelty_said = False

    def before(self, systems: Sequence[System], committee: Committee) -> None:
        """Warn of charged cells, whose Coulomb energy only a background charge makes finite."""
        if self._background_said or not committee.coulomb & {"simple", "ewald"}:
            return
        if any(system.charge != 0 and system.n_periodic == 3 for system in systems):
            self._background_said = True
            warnings.warn(CHARGED_CELL, stacklevel=3)

    def after(self, found: Sequence[Evaluation], committee: Committee) -> None:
        """Warn of structures outside of what the potential was trained on."""
        if self._novelty_said:
            return
        novel = [place for place, one in enumerate(found) if one.novelty is not None and one.novelty > 1.0]
        if novel:
            self._novelty_said = True
            warnings.warn(_outside(found, novel, committee.metadata.fidelity.name), NoveltyWarning, stacklevel=3)


def _outside(found: Sequence[Evaluation], novel: Sequence[int], name: str) -> str:
    highest = max(novel, key=lambda place: found[place].novelty or 0.0)
    which = "the structure lies" if len(found) == 1 else f"{len(novel)} of {len(found)} structures lie"
    place = "" if len(found) == 1 else f" of structure {highest}"
    return (
        f"{which} outside of what {name} was trained on (novelty {found[highest].novelty:.3g}{place}; 99 % of the "
        "training structures are below 1): energies and forces may be wrong. This is said once; "
        'see results["novelty"]'
    )
