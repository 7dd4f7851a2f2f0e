"""Dimers pulled apart from 0.3 to 20 Å: no jump of energy or force anywhere, whatever the potential is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import suites
import torch
from numpy.typing import NDArray
from torch import nn

from aimnet2mult.models.derivatives import forces_from_energy
from aimnet2mult.models.dispersion import D3BJ
from aimnet2mult.models.dispersion_d4 import D4
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.physics.functionals import resolve_d3
from aimnet2mult.physics.functionals_d4 import resolve_d4

STEP = 0.001  # Å; every tenth point is one of a scan in steps of 0.01 Å
DISTANCES = np.arange(300, 20_001) * STEP
ELEMENTS = [1, 6, 7, 8, 9, 17]
SAE = dict.fromkeys(ELEMENTS, -1.0)
JUMP = 1e-5  # eV, eV/Å


class Scan(NamedTuple):
    energy: NDArray[np.float64]  # eV
    force: NDArray[np.float64]  # eV/Å, along the distance


def dispersion_terms() -> dict[str, Callable[[], list[nn.Module]]]:
    return {
        "none": lambda: [],
        "d3": lambda: [D3BJ(ELEMENTS, resolve_d3("pbe0").parameters)],
        "d4": lambda: [D4(ELEMENTS, resolve_d4("pbe0").parameters)],
    }


def scan(potential: nn.Module, numbers: tuple[int, int], charge: float) -> Scan:
    n = len(DISTANCES)
    coord = torch.zeros(n, 2, 3, dtype=torch.float64)
    coord[:, 1, 0] = torch.from_numpy(DISTANCES)
    coord.requires_grad_()
    electrons = sum(numbers) - charge
    data = {
        "coord": coord,
        "numbers": torch.tensor(numbers).expand(n, 2),
        "charge": torch.full((n,), charge, dtype=torch.float64),
        "mult": torch.full((n,), 1.0 + electrons % 2, dtype=torch.float64),
    }
    energy = potential(data)["energy"]
    forces = forces_from_energy(energy, coord)
    return Scan(energy.detach().numpy(), forces[:, 1, 0].numpy())


def largest_jumps(values: NDArray[np.float64]) -> float:
    """Largest difference between what three points on either side say of the middle between them.

    Quadratic extrapolation is exact to h^3, below 1e-8 for functions as smooth as these; a bend, as where a cosine
    switch ends, counts with h times its change of slope at most; a jump counts fully.
    """
    left = (3.0 * values[:-5] - 10.0 * values[1:-4] + 15.0 * values[2:-3]) / 8.0
    right = (15.0 * values[3:-2] - 10.0 * values[4:-1] + 3.0 * values[5:]) / 8.0
    return float(np.abs(right - left).max())


@pytest.mark.parametrize("dimer", [((6, 8), 0.0), ((17, 1), 0.0), ((7, 9), -1.0)], ids=["CO", "ClH", "NF-"])
@pytest.mark.parametrize("dispersion", ["none", "d3", "d4"])
@pytest.mark.parametrize("coulomb", [None, "simple", "dsf"])
def test_no_jumps(coulomb: str | None, dispersion: str, dimer: tuple[tuple[int, int], float]) -> None:
    heads = "aimnet2mult.models.heads."
    head = {"class": heads + "LRCoulomb", "kwargs": {"method": coulomb, "rc": 4.6}} if coulomb else None
    network = suites.network(outputs={"lrcoulomb": head}).at_fidelity(1)
    potential = Potential(network, SelfAtomicEnergy(SAE), dispersion_terms()[dispersion]())
    found = scan(potential, *dimer)
    assert np.ptp(found.energy) > 100.0 * JUMP, "nothing happens in this scan"
    assert largest_jumps(found.energy) < JUMP
    assert largest_jumps(found.force) < JUMP


def test_a_jump_would_be_seen() -> None:
    found = scan(Potential(suites.network().at_fidelity(1), SelfAtomicEnergy(SAE)), (6, 8), 0.0)
    outside = DISTANCES > 5.0
    for values in found:
        # where the curve happens to bend the other way the two partly cancel: twice the bar is safely seen
        assert largest_jumps(values + 2.0 * JUMP * outside) > JUMP
