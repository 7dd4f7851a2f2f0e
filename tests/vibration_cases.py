"""Model potentials with known vibrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import BFGS
from hessian_cases import door, prepared
from numpy.typing import NDArray

from aimnet2mult.calculators.vibrations import Vibrations, vibrations, vibrations_of
from aimnet2mult.models.derivatives import forces_from_energy

J_MOL_K = units.J / units.mol  # J/(mol K) in eV/K
DEBYE = 0.2081943  # e Å, CODATA 2018


class Springs(torch.nn.Module):
    """An elastic network as a potential with fixed charges: springs between all pairs of atoms of a molecule.

    Those that are not bonded rest a tenth farther apart than in the molecule, so that linear molecules resist bending.
    """

    def __init__(self, atoms: Atoms) -> None:
        super().__init__()
        self.first, self.second = torch.triu_indices(len(atoms), len(atoms), 1)
        length = torch.from_numpy(atoms.get_all_distances())[self.first, self.second]
        bonded = length < 1.6
        self.length = torch.where(bonded, length, 1.1 * length)
        self.stiffness = torch.where(bonded, 40.0, 6.0) + self.first  # no two alike

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        coord, numbers = data["coord"], data["numbers"].double()
        r = (coord[:, self.first] - coord[:, self.second]).norm(dim=-1)
        charges = 0.1 * (numbers - numbers.mean(dim=1, keepdim=True))
        energy = 0.5 * (self.stiffness * (r - self.length).square()).sum(1)
        return {"energy": energy, "charges": charges + 0.0 * coord.sum(-1)}


class Relaxed(NamedTuple):
    atoms: Atoms
    potential: Springs

    def vibrations(self, mult: int = 1) -> Vibrations:
        self.atoms.info["mult"] = mult
        return vibrations_of(self.atoms, prepared(self.atoms, (self.potential,)))


class OfPotential(Calculator):
    """The smallest ASE calculator of a potential."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, potential: Springs) -> None:
        super().__init__()
        self.potential = potential

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = (), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.atoms.info = {"charge": 0, "mult": 1}
        data = door(self.atoms)
        coord = data["coord"].requires_grad_()
        energy = self.potential(data)["energy"]
        self.results = {"energy": float(energy.detach()), "forces": forces_from_energy(energy, coord)[0].numpy()}


def relaxed(name: str, fmax: float = 1e-9) -> Relaxed:
    atoms = molecule(name)
    atoms.info = {"charge": 0, "mult": 1}
    found = Relaxed(atoms, Springs(atoms))
    atoms.calc = OfPotential(found.potential)
    with BFGS(atoms, logfile=None) as optimiser:
        assert optimiser.run(fmax=fmax, steps=500)
    return found


def bond_hessian(n_atoms: int, terms: Sequence[tuple[float, Sequence[Sequence[float]]]]) -> NDArray[np.float64]:
    """Hessian of E = sum of k/2 (g . x)^2, each g an (N, 3) combination of displacements."""
    matrix = np.zeros((3 * n_atoms, 3 * n_atoms))
    for k, g in terms:
        matrix += k * np.outer(np.ravel(g), np.ravel(g))
    return matrix


def diatomic(symbols: str, length: float, wavenumber: float, mult: int = 1) -> Vibrations:
    """A molecule of two atoms along x with a spring that gives this frequency in cm^-1."""
    atoms = Atoms(symbols, [[0, 0, 0], [length, 0, 0]])
    mass = np.prod(atoms.get_masses()) / atoms.get_masses().sum() * units._amu
    k = mass * (2 * np.pi * units._c * 100 * wavenumber) ** 2 / units._e / 1e20  # N/m in eV/Å^2
    return vibrations(atoms, bond_hessian(2, [(k, [[-1, 0, 0], [1, 0, 0]])]), mult=mult)


def saddle() -> Vibrations:
    atoms = Atoms("OCO", [[-1.16, 0, 0], [0, 0, 0], [1.16, 0, 0]])
    stretches = [(90.0, [[-1, 0, 0], [1, 0, 0], [0, 0, 0]]), (90.0, [[0, 0, 0], [-1, 0, 0], [1, 0, 0]])]
    bends = [(k, [np.array(axis) * f for f in (1, -2, 1)]) for k, axis in ((-3.0, [0, 1, 0]), (3.0, [0, 0, 1]))]
    sentence = r"1 of 4 modes is imaginary \(6\d\d\.\di cm\^-1\): this is not a minimum$"
    with pytest.warns(UserWarning, match=f"^{sentence}"):
        return vibrations(atoms, bond_hessian(3, [*stretches, *bends]))
