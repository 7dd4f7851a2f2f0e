"""Small inputs for the tests of the calculator."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import molecule


def water(**info: object) -> Atoms:
    return Atoms("OH2", molecule("H2O").positions, info=info)


def alkane(n: int) -> Atoms:
    """A stretched chain CnH2n+2."""
    atoms = Atoms()
    for i in range(n):
        up = (-1) ** i
        carbon = np.array([1.27 * i, 0.45 * up, 0.0])
        atoms += Atoms("CH2", carbon + np.array([[0, 0, 0], [0, 0.6 * up, 0.9], [0, 0.6 * up, -0.9]]))
    atoms += Atoms("H2", [[-0.95, -0.1, 0.0], [1.27 * (n - 1) + 0.95, -0.1, 0.0]])
    return atoms
