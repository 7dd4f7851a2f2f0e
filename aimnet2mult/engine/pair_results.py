"""What sums over pairs say of one structure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class PairSum(NamedTuple):
    """Energy of one structure with its first derivatives."""

    energy: float  # eV
    gradient: Array  # (n, 3) eV/Å
    virial: Array  # (3, 3) eV, by the strain e of x' = x (1 + e)


class ChargeSum(NamedTuple):
    """Energy of the charges of one structure with its first derivatives."""

    energy: float  # eV
    gradient: Array  # (n, 3) eV/Å
    virial: Array  # (3, 3) eV, by the strain e of x' = x (1 + e)
    by_charge: Array  # (n,) eV/e
