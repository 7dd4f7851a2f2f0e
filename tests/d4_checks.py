"""Comparisons of D4 results with the dftd4 package."""

from __future__ import annotations

import d4_cases
import numpy as np
from ase import Atoms
from d4_cases import DEFAULT_CUTOFFS, PBE0, d4, reference, results

from aimnet2mult.physics.d4 import D4Cutoffs
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.functionals_d4 import resolve_d4

# Both sides work in float64 with the same formulas. The largest deviations seen, 7e-13 and 3e-12, come from the
# square root of a coordination number near 0, which the package takes of a difference of two logarithms.
ENERGY_LIMIT = 1e-11  # Hartree
GRADIENT_LIMIT = 1e-10  # Hartree/Bohr
# Crystals with equilibrated charges: the lattice sum of the package ends at its second neighbour cells
CRYSTAL_ENERGY_LIMIT = 1e-8  # Hartree
CRYSTAL_GRADIENT_LIMIT = 1e-7  # Hartree/Bohr, and Hartree for the virial
ROUNDING = 1e-13  # Hartree: the same sums in another order

# the package counts an empty slot of its tables as a reference system of these
EMPTY_SLOT = (92, 95, 98)
ALL_PARAMETERS = {
    **{name: resolve_d4(name).parameters for name in ("pbe0", "b3lyp", "wb97m", "b2plyp")},
    "two-body": resolve_d4("tpss", s9=0.0).parameters,
    "s9 0.5": resolve_d4("r2scan", s9=0.5).parameters,
}


def check_molecules(
    systems: list[Atoms],
    parameters: DampingParameters = PBE0,
    cutoffs: D4Cutoffs = DEFAULT_CUTOFFS,
    plain: bool | None = None,
) -> None:
    """Evaluate all molecules as one padded batch and compare each with the dftd4 package."""
    found = results(d4(systems, parameters, plain, cutoffs=cutoffs), systems)
    for row, atoms in enumerate(systems):
        right, _ = reference(atoms, parameters, cutoffs)
        n = len(atoms)
        assert abs(found.energy[row] - right.energy[0]) < ENERGY_LIMIT, atoms.symbols
        assert np.abs(found.gradient[row, :n] - right.gradient[0]).max() < GRADIENT_LIMIT, atoms.symbols
        assert (found.gradient[row, n:] == 0.0).all(), atoms.symbols


def check_equal(found: d4_cases.Result, expected: d4_cases.Result, tolerance: float = ROUNDING) -> None:
    for name in d4_cases.Result._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance, err_msg=name)


def check_crystal(found: d4_cases.Result, right: d4_cases.Result) -> None:
    assert abs(found.energy - right.energy) < CRYSTAL_ENERGY_LIMIT
    assert np.abs(found.gradient - right.gradient).max() < CRYSTAL_GRADIENT_LIMIT
    assert np.abs(found.virial - right.virial).max() < CRYSTAL_GRADIENT_LIMIT
