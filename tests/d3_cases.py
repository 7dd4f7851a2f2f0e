"""Helpers of the D3 tests: batches, brute-force pair lists, and the dftd3 package as reference."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms
from dftd3.interface import DispersionModel, RationalDampingParam
from torch import Tensor

from aimnet2mult.models.dispersion import D3BJ, DEFAULT_CUTOFFS
from aimnet2mult.models.dispersion_cutoffs import package_cutoffs
from aimnet2mult.physics.d3 import D3Cutoffs
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.types import Molecules, NeighborLists
from aimnet2mult.units import ANGSTROM_PER_BOHR, BOHR_PER_ANGSTROM, EV_PER_HARTREE

# the dftd3 package knows no smooth end of coordination numbers: compare where they end sharply
SMOOTH = DEFAULT_CUTOFFS._replace(cn=40.0, width_cn=0.0)
SHARP = SMOOTH._replace(width2=0.0, width3=0.0)
CUTOFFS = pytest.mark.parametrize("cutoffs", [SMOOTH, SHARP], ids=["smooth", "sharp"])
# short ones that switch over a long range, as in which most pairs and triangles of a small system stand
ZONES = D3Cutoffs(disp2=20.0, disp3=14.0, width2=9.0, width3=6.0, cn=16.0, width_cn=8.0)

# pairs that are left to automatic differentiation: all, or none
PATHS = pytest.mark.parametrize("max_plain", [10**9, 0], ids=["plain", "blocks"])


class Result(NamedTuple):
    energy: np.ndarray  # (B,) Hartree
    gradient: np.ndarray  # (B, N, 3) Hartree/Bohr
    virial: np.ndarray  # (B, 3, 3) Hartree, dE/d(strain)


def padded(systems: Sequence[Atoms]) -> tuple[Tensor, Tensor]:
    """Coordinates and numbers of a batch; the padding holds rubbish coordinates."""
    size = max(len(atoms) for atoms in systems)
    coord = torch.full((len(systems), size, 3), 0.3, dtype=torch.float64)
    numbers = torch.zeros((len(systems), size), dtype=torch.int64)
    for row, atoms in enumerate(systems):
        coord[row, : len(atoms)] = torch.from_numpy(atoms.positions)
        numbers[row, : len(atoms)] = torch.from_numpy(atoms.numbers)
    return coord, numbers


def evaluate(module: torch.nn.Module, coord: Tensor, numbers: Tensor, lists: NeighborLists | None = None) -> Tensor:
    """Energies (B,) in eV; D3 looks at nothing but coordinates, numbers and lists."""
    zeros = torch.zeros(len(coord))
    return module(Molecules(coord, numbers, zeros, zeros + 1, zeros.long()), lists, torch.zeros(numbers.shape))


def periodic_cell(atoms: Atoms) -> np.ndarray:
    """Cell with zero rows in directions that are not periodic."""
    return np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)


def brute_force_pairs(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of atoms and images within `cutoff` (Å) once, by looking at all of them: first, second, shift."""
    cell, positions = periodic_cell(atoms), atoms.positions
    reciprocal = np.linalg.pinv(cell)  # one column per cell vector, 0 where not periodic: no images there
    spread = np.ptp(positions @ reciprocal, axis=0)
    reach = np.ceil(cutoff * np.linalg.norm(reciprocal, axis=0) + spread).astype(int)
    found = []
    for shift in itertools.product(*[range(-n, n + 1) for n in reach]):
        if shift < (0, 0, 0):
            continue  # the other half: j, i and -T
        vectors = positions[None, :] + np.array(shift) @ cell - positions[:, None]
        near = np.linalg.norm(vectors, axis=2) <= cutoff
        first, second = np.nonzero(np.triu(near, 1) if shift == (0, 0, 0) else near)
        found.append(np.column_stack([first, second, np.broadcast_to(shift, (len(first), 3))]))
    pairs = np.concatenate(found)
    return pairs[:, 0], pairs[:, 1], pairs[:, 2:]


def pair_lists(systems: Sequence[Atoms], cutoff: float, shuffle: int | None = None) -> NeighborLists:
    """Lists of a batch, in no particular order; the part for the network is left empty."""
    size = max(len(atoms) for atoms in systems)
    pairs = [brute_force_pairs(atoms, cutoff) for atoms in systems]
    first, second = (np.concatenate([pair[k] + row * size for row, pair in enumerate(pairs)]) for k in (0, 1))
    shift = np.concatenate([pair[2] for pair in pairs])
    order = np.arange(len(first)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(first))
    cell = torch.from_numpy(np.stack([periodic_cell(atoms) for atoms in systems]))
    empty = torch.zeros((len(systems), size, 0), dtype=torch.int64)
    return NeighborLists(
        cell,
        empty,
        empty.unsqueeze(3).expand(-1, -1, -1, 3),
        torch.from_numpy(first[order]),
        torch.from_numpy(second[order]),
        torch.from_numpy(shift[order].astype(np.int32)),
    )


def results(module: torch.nn.Module, coord: Tensor, numbers: Tensor, lists: NeighborLists | None = None) -> Result:
    """Energies and derivatives by automatic differentiation; the virial by straining coordinates and cell."""
    coord = coord.clone().requires_grad_()
    strain = torch.zeros((len(coord), 3, 3), dtype=torch.float64, requires_grad=True)
    deform = torch.eye(3, dtype=torch.float64) + strain
    if lists is not None:
        lists = lists._replace(cell=lists.cell @ deform)
    energy = evaluate(module, coord @ deform, numbers, lists)
    gradient, virial = torch.autograd.grad(energy.sum(), [coord, strain])
    return Result(
        energy.detach().numpy() / EV_PER_HARTREE,
        gradient.numpy() / EV_PER_HARTREE * ANGSTROM_PER_BOHR,
        virial.numpy() / EV_PER_HARTREE,
    )


def reference(atoms: Atoms, parameters: DampingParameters, cutoffs: D3Cutoffs = DEFAULT_CUTOFFS) -> Result:
    """The same from the dftd3 package."""
    cell = {}
    if atoms.pbc.any():
        cell = {"lattice": atoms.cell.array * BOHR_PER_ANGSTROM, "periodic": atoms.pbc}
    model = DispersionModel(atoms.numbers, atoms.positions * BOHR_PER_ANGSTROM, **cell)
    model.set_realspace_cutoff(**package_cutoffs(cutoffs))
    result = model.get_dispersion(RationalDampingParam(**parameters._asdict(), alp=14.0), grad=True)
    return Result(np.array([result["energy"]]), result["gradient"][None], result["virial"][None])


def module_for(
    systems: Sequence[Atoms],
    parameters: DampingParameters,
    max_plain: int | None = None,
    cutoffs: D3Cutoffs = DEFAULT_CUTOFFS,
) -> D3BJ:
    """D3 for the elements of some systems; with small blocks where `max_plain` is given."""
    module = D3BJ(sorted({int(z) for atoms in systems for z in atoms.numbers}), parameters, cutoffs)
    if max_plain is not None:
        module.max_plain = max_plain
        module.block = 700
    return module
