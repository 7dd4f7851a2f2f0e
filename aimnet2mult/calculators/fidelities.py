"""Every fidelity that was compiled beside a potential, asked about one structure."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from aimnet2mult.calculators.batch import evaluate_batches
from aimnet2mult.calculators.evaluation import Evaluation
from aimnet2mult.calculators.inputs import checked_system
from aimnet2mult.calculators.locate import siblings
from aimnet2mult.calculators.members import Potentials
from aimnet2mult.errors import InputError


class Fidelities(NamedTuple):
    """What every fidelity that was compiled beside a potential says of one structure."""

    results: dict[str, Evaluation]  # by the name of the fidelity
    without: dict[str, str]  # fidelities that cannot be asked, and why: most often an element that they do not know
    energy_std: float  # eV, sample standard deviation over the fidelities
    forces_std: NDArray[np.float64]  # (N, 3) eV/Å
    charges_std: NDArray[np.float64]  # (N,) e


def all_fidelities(potentials: Potentials, atoms: Atoms, charge: int | None, mult: int | None) -> Fidelities:
    """Energy, forces and charges at every fidelity; see `AIMNet2MultCalculator.all_fidelities`.

    Raises
    ------
    InputError
        No fidelity can be asked about this structure.
    """
    found: dict[str, Evaluation] = {}
    without: dict[str, str] = {}
    for info in siblings(potentials.paths[0]) or [potentials.metadata.fidelity]:
        try:
            chosen = potentials.at(info.index)
            system = checked_system(atoms, charge, mult, chosen.metadata)
            (found[info.name],) = evaluate_batches(chosen.committee(), [system], stress=False, forces=True)
        except InputError as error:
            without[info.name] = str(error).removeprefix("structure 0: ")
    if not found:
        raise InputError(next(iter(without.values())))
    return _compared(found, without)


def _compared(results: dict[str, Evaluation], without: dict[str, str]) -> Fidelities:
    """Results of several fidelities with their spread, which is zero if there is only one."""
    found = list(results.values())

    def spread(values: list[Any]) -> Any:
        return np.std(values, axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])

    return Fidelities(
        results=results,
        without=without,
        energy_std=float(spread([one.energy for one in found])),
        forces_std=spread([one.forces for one in found]),
        charges_std=spread([one.charges for one in found]),
    )
