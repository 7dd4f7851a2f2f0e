"""Potentials, door dictionaries and checks for the tests of second derivatives."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import suites
import torch
from ase import Atoms
from ase.build import bulk, molecule
from numpy.typing import NDArray
from torch import Tensor, nn

from aimnet2mult.calculators.inputs import System
from aimnet2mult.calculators.neighbors import Frame, VerletLists, door_entries
from aimnet2mult.calculators.preparation import Prepared
from aimnet2mult.calculators.runtime_dispersion import RuntimeDispersion
from aimnet2mult.models.derivatives import forces_from_energy
from aimnet2mult.models.dispersion import D3BJ, DEFAULT_CUTOFFS
from aimnet2mult.models.dispersion_d4 import D4
from aimnet2mult.models.files import script_potential
from aimnet2mult.models.hessian import hessian_by_differences
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.physics.d3 import D3Cutoffs
from aimnet2mult.physics.functionals import resolve_d3
from aimnet2mult.physics.functionals_d4 import resolve_d4

Door = dict[str, Tensor]

ELEMENTS = [1, 6, 7, 8, 9, 14, 15, 16, 17]
SAE = dict.fromkeys(ELEMENTS, -2.0)
# neutral, cation, anion, radicals, triplet, linear, two atoms; no symmetry is left
CASES = (
    ("H2O", 0, None), ("CH3OH", 0, None), ("CH3", 1, 1), ("OH", -1, 1), ("CH3O", -1, 1), ("NO2", 0, None),
    ("H2O", 1, 2), ("CH2_s3B1d", 0, None), ("CO2", 0, None), ("HCN", 0, None), ("H2", 0, None), ("CH3SH", 0, None),
)  # fmt: skip
# Of the largest element. Five-point differences with steps of 1e-3 Å: truncation step^4 / 30 of the fifth derivative
# (1e-10 for features 0.3 Å wide), rounding 1e-13 eV/Å / 1e-3 Å = 1e-10. A missing term is 1e-3 and more.
TOLERANCE = 1e-6


class Both(NamedTuple):
    """A potential as it is made and as it comes out of a file."""

    eager: Potential
    scripted: torch.jit.ScriptModule


def potential(*terms: nn.Module, **changes: object) -> Potential:
    """A small network, Coulomb included, and dispersion, in float64."""
    return Potential(suites.network(**changes).at_fidelity(1).double(), SelfAtomicEnergy(SAE), terms).eval()


def loaded(eager: Potential) -> torch.jit.ScriptModule:
    """As it comes out of a file."""
    stream = io.BytesIO()
    torch.jit.save(script_potential(eager), stream)
    stream.seek(0)
    return torch.jit.load(stream)


def d3(s9: float = 0.0, cutoffs: D3Cutoffs = DEFAULT_CUTOFFS) -> D3BJ:
    return D3BJ(ELEMENTS, resolve_d3("pbe0", s9=s9).parameters, cutoffs)


def d4() -> D4:
    return D4(ELEMENTS, resolve_d4("pbe0").parameters)


def linear(name: str) -> Atoms:
    """Exactly on a line, out of equilibrium."""
    atoms = molecule(name)
    atoms.positions *= 1.05
    atoms.info = {"charge": 0, "mult": 1}
    return atoms


def door(atoms: Atoms, module: nn.Module | None = None) -> Door:
    """What a potential takes; with neighbour lists where the structure is periodic or `module` is given."""
    batch = suites.collate([atoms])
    data = {"coord": batch.coord, "numbers": batch.numbers, "charge": batch.charge, "mult": batch.mult}
    if module is None:
        return data
    cell = atoms.cell.array * atoms.pbc[:, None]
    pair_cutoff = module.pair_cutoff(len(atoms), abs(np.linalg.det(cell)) if atoms.pbc.all() else 0.0)
    lists = VerletLists().update(Frame(atoms.positions, cell), 5.0, pair_cutoff)
    return data | door_entries([lists], [cell], len(atoms), torch.device("cpu"))


def gradient_of(module: nn.Module, data: Mapping[str, Tensor]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    def gradient(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        coord = torch.from_numpy(positions).unsqueeze(0).requires_grad_()
        return -forces_from_energy(module({**data, "coord": coord})["energy"], coord)[0].numpy()

    return gradient


def differences(module: nn.Module, data: Mapping[str, Tensor], step: float = 1e-3) -> Tensor:
    return torch.from_numpy(hessian_by_differences(gradient_of(module, data), data["coord"][0].numpy(), step))


def check(found: Tensor, expected: Tensor, name: str) -> None:
    largest = expected.abs().max()
    assert largest > 1e-2, f"{name}: second derivatives this small test nothing"
    assert (found - expected).abs().max() < TOLERANCE * largest, name


def check_invariances(found: Tensor) -> None:
    n = found.shape[0]
    square = found.view(3 * n, 3 * n)
    assert torch.equal(square, square.T)
    assert found.sum(2).abs().max() < suites.ROUNDING * found.abs().max() + 1e-14


def crystals() -> list[Atoms]:
    rng = np.random.default_rng(4)
    salt = bulk("SiC", "zincblende", 4.3)
    salt.rattle(0.05, seed=1)
    triclinic = Atoms("CHONHCl", rng.uniform(0, 1, (6, 3)) @ np.diag([5, 6, 7]), cell=[5.2, 6.1, 7.3, 80, 97, 108])
    triclinic.pbc = True
    slab = Atoms("CO2H2", rng.uniform(0, 3, (5, 3)), cell=[3.1, 3.3, 0.0], pbc=[True, True, False])
    for atoms in (salt, triclinic, slab):
        atoms.info = {"charge": 0, "mult": 1}
    return [salt, triclinic, slab]


def dipole(module: nn.Module, data: Mapping[str, Tensor], masses: Tensor) -> Callable[[Tensor], Tensor]:
    def moment(coord: Tensor) -> Tensor:
        charges = module({**data, "coord": coord.unsqueeze(0)})["charges"][0].detach()
        return (charges.unsqueeze(1) * (coord - (masses.unsqueeze(1) * coord).sum(0) / masses.sum())).sum(0)

    return moment


def levi_civita() -> Tensor:
    """e[a, x, i]: component x of (unit vector a) x (unit vector i)."""
    axes = torch.eye(3, dtype=torch.float64)
    return torch.stack([torch.stack([torch.linalg.cross(a, i) for i in axes], dim=1) for a in axes])


def system_of(atoms: Atoms) -> System:
    cell = atoms.cell.array * atoms.pbc[:, None]
    return System(atoms.positions, atoms.numbers.astype(np.int64), cell, atoms.info["charge"], atoms.info["mult"])


def prepared(atoms: Atoms, modules: tuple[nn.Module, ...], dispersion: RuntimeDispersion | None = None) -> Prepared:
    return Prepared(modules, door(atoms), system_of(atoms), dispersion, threading.RLock())


class Fake(nn.Module):
    """A potential with the energy of a function of the coordinates."""

    def __init__(self, energy: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, data: Door) -> Door:
        return {"energy": self.energy(data["coord"]), "charges": data["coord"][..., 0].log()}


class NoGradient(torch.autograd.Function):
    """An energy whose forces are no gradient: those on an atom along y change as it moves along x, not conversely."""

    @staticmethod
    def forward(ctx: Any, coord: Tensor) -> Tensor:
        ctx.save_for_backward(coord)
        return torch.zeros_like(coord[:, 0, 0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (coord,) = ctx.saved_tensors
        return (coord - coord[:, 1:2]).roll(1, dims=2) * grad.view(-1, 1, 1)
