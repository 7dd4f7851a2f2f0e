"""Evaluation of loaded potentials: the results of structures, whichever way they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from ase.calculators.calculator import CalculationFailed
from numpy.typing import NDArray

from aimnet2mult.calculators.inputs import System
from aimnet2mult.calculators.neighbors import SystemLists
from aimnet2mult.calculators.runtime_dispersion import RuntimeDispersion
from aimnet2mult.engine.records import Edges

Array = NDArray[np.float64]


class Evaluation(NamedTuple):
    """What a potential, or the mean of an ensemble, says of one structure."""

    energy: float  # eV
    charges: Array  # (N,) e
    spin_charges: Array  # (N,) e
    forces: Array | None  # (N, 3) eV/Å
    stress: Array | None  # (6,) eV/Å^3, Voigt order xx, yy, zz, yz, xz, xy
    energy_std: float | None = None  # eV, over the members of an ensemble
    forces_std: Array | None = None  # (N, 3) eV/Å
    novelty: float | None = None  # above 1: outside of what was trained on; None: not known; mean over members


class Surroundings(NamedTuple):
    """What stands around the atoms of a structure, in the forms that its evaluator works on."""

    lists: SystemLists | None  # None: all pairs of the molecule
    edges: Edges | None  # for the compiled engine


class Outputs(NamedTuple):
    """What one potential says of several structures, whose n atoms stand one structure after another."""

    energy: Array  # (B,) eV
    charges: Array  # (n,) e
    spin_charges: Array  # (n,) e
    forces: Array | None  # (n, 3) eV/Å
    stress: Array | None  # (B, 6) eV/Å^3, Voigt order
    novelty: Array | None  # (B,)


class Evaluator(Protocol):
    """A way to compute what the members of a committee say of structures."""

    def __call__(
        self, systems: Sequence[System], surroundings: Sequence[Surroundings], stress: bool, forces: bool
    ) -> list[Outputs]:
        """One result per member; see `evaluate`."""


def evaluate(
    evaluator: Evaluator,
    systems: Sequence[System],
    surroundings: Sequence[Surroundings],
    dispersion: RuntimeDispersion | None,
    stress: bool,
    forces: bool,
) -> list[Evaluation]:
    """Energies and charges of structures and, where asked for, forces and stress from the same pass.

    Parameters
    ----------
    evaluator
        Of the potentials whose mean is taken.
    systems, surroundings
        The structures, and what `aimnet2mult.calculators.preparation.look_up` finds around their atoms.
    dispersion
        A correction that is added to the potentials.
    stress
        Whether to compute stress too; needs cells that are periodic in all directions.
    forces
        Whether to compute forces.

    Raises
    ------
    CalculationFailed
        A potential stopped, or a result is not finite.
    """
    members = evaluator(systems, surroundings, stress, forces)
    found, begin = [], 0
    for row, system in enumerate(systems):
        end = begin + len(system.numbers)
        found.append(_of_one(members, row, begin, end))
        begin = end
    if dispersion is not None:
        found = [dispersion.added_to(one, system) for one, system in zip(found, systems, strict=True)]
    for one in found:
        _check_finite(one)
    return found


def _of_one(members: Sequence[Outputs], row: int, begin: int, end: int) -> Evaluation:
    """Mean and, for two members or more, sample standard deviation of one structure of the batch."""
    first = members[0]
    if len(members) == 1:
        return Evaluation(
            energy=float(first.energy[row]),
            charges=first.charges[begin:end],
            spin_charges=first.spin_charges[begin:end],
            forces=None if first.forces is None else first.forces[begin:end],
            stress=None if first.stress is None else first.stress[row],
            novelty=None if first.novelty is None else float(first.novelty[row]),
        )
    energy = np.array([member.energy[row] for member in members])
    forces = None if first.forces is None else np.array([member.forces[begin:end] for member in members])  # type: ignore[index]
    novelty = [member.novelty[row] for member in members if member.novelty is not None]
    return Evaluation(
        energy=float(energy.mean()),
        charges=np.mean([member.charges[begin:end] for member in members], axis=0),
        spin_charges=np.mean([member.spin_charges[begin:end] for member in members], axis=0),
        forces=None if forces is None else forces.mean(axis=0),
        stress=None if first.stress is None else np.mean([member.stress[row] for member in members], axis=0),  # type: ignore[index]
        energy_std=float(energy.std(ddof=1)),
        forces_std=None if forces is None else forces.std(axis=0, ddof=1),
        novelty=float(np.mean(novelty)) if novelty else None,
    )


def _check_finite(found: Evaluation) -> None:
    wrong = [name for name, value in found._asdict().items() if value is not None and not np.isfinite(value).all()]
    if wrong:
        raise CalculationFailed(f"the potential gave {' and '.join(wrong)} that are not finite for this geometry")
