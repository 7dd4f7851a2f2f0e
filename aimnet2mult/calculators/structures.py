"""One call for many structures, without a calculator on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase import Atoms

from aimnet2mult.calculators.ase import AIMNet2MultCalculator, Model
from aimnet2mult.calculators.evaluation import Evaluation
from aimnet2mult.errors import InputError


def evaluate(
    potential: Model | AIMNet2MultCalculator,
    structures: Sequence[Atoms],
    *,
    forces: bool = True,
    stress: bool = False,
    memory: int | None = None,
    **arguments: Any,
) -> list[Evaluation]:
    """Energies, charges and, where asked for, forces and stress of many structures, batched by size.

    ::

        from aimnet2mult import evaluate

        found = evaluate("compiled/model_fid0.jpt", structures)
        energies = [one.energy for one in found]  # eV

    Parameters
    ----------
    potential
        A calculator, or what `AIMNet2MultCalculator` takes as its `model`.
    structures, forces, stress, memory
        See `AIMNet2MultCalculator.evaluate`.
    **arguments
        Further ones of `AIMNet2MultCalculator`, such as ``fidelity=``, where `potential` is none.

    Returns
    -------
    list of Evaluation
        In the order of `structures`.

    Raises
    ------
    InputError, ModelFileError, ase.calculators.calculator.CalculationFailed
        As for the calculator.
    """
    if not isinstance(potential, AIMNet2MultCalculator):
        potential = AIMNet2MultCalculator(potential, **arguments)
    elif arguments:
        names = ", ".join(arguments)
        raise InputError(f"a calculator has its own {names} already; these go with the path of a potential")
    return potential.evaluate(structures, forces=forces, stress=stress, memory=memory)
