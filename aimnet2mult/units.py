"""Unit conversions; the only module where Hartree, Bohr and kcal/mol appear.

Everything inside the package is in eV, Å and e.
Constants: CODATA 2018, https://physics.nist.gov/cuu/Constants (the values that the dftd3 package uses too).
"""

from __future__ import annotations

from typing import Final

EV_PER_HARTREE: Final = 27.211386245988
ANGSTROM_PER_BOHR: Final = 0.529177210903
BOHR_PER_ANGSTROM: Final = 1.0 / ANGSTROM_PER_BOHR
# 1 thermochemical kcal/mol = 4184 J/mol, with the exact 2019 values of e and the Avogadro constant
EV_PER_KCAL_MOL: Final = 4184.0 / (1.602176634e-19 * 6.02214076e23)
# Coulomb constant e^2 / (4 pi eps0) = Hartree * Bohr in eV Å
COULOMB_EV_ANGSTROM: Final = EV_PER_HARTREE * ANGSTROM_PER_BOHR
MILLI: Final = 1000.0
