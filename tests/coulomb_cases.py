"""Point charges in cells and molecules for the tests of Coulomb energies, with a pair list by plain enumeration."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aimnet2mult.types import Molecules, NeighborLists, Pairs

KE = 27.211386245988 * 0.529177210903  # e^2 / (4 pi eps0) in eV Å: Hartree times Bohr, CODATA 2018
NOWHERE = 1e-3  # Å: a short range that no pair reaches into
Array = NDArray[np.float64]


class Charges(NamedTuple):
    """Point charges in a cell; rows of zeros in directions that are not periodic."""

    charges: Array  # (n,) e
    positions: Array  # (n, 3) Å
    cell: Array  # (3, 3) Å

    def repeated(self, counts: tuple[int, int, int]) -> Charges:
        shifts = np.array(list(itertools.product(*(range(n) for n in counts))))
        positions = (self.positions + (shifts @ self.cell)[:, None]).reshape(-1, 3)
        return Charges(np.tile(self.charges, len(shifts)), positions, self.cell * np.array(counts)[:, None])


class Batch(NamedTuple):
    """A padded batch."""

    charges: Tensor  # (B, N)
    molecules: Molecules
    lists: NeighborLists


def half_pairs(positions: Array, cell: Array, cutoff: float) -> tuple[list[int], list[int], list[tuple[int, ...]]]:
    """Each pair within the cutoff once, images included, found by trying every translation that could reach."""
    spread = float(np.linalg.norm(positions - positions.mean(0), axis=1).max())
    periodic = np.linalg.norm(cell, axis=1) > 0.0
    # a translation by t cells moves by at least |t| times the distance of the lattice planes
    full = cell.copy()
    for row in np.flatnonzero(~periodic):
        full[row] = np.linalg.svd(full)[2][-1]  # normal to the vectors that are there
    planes = 1.0 / np.linalg.norm(np.linalg.inv(full), axis=0)
    reach = [int((cutoff + 2.0 * spread) / d) + 1 if p else 0 for d, p in zip(planes, periodic, strict=True)]
    first, second, shifts = [], [], []
    for shift in itertools.product(*(range(-r, r + 1) for r in reach)):
        vectors = positions[None] + np.array(shift) @ cell - positions[:, None]
        for i, j in np.argwhere(np.linalg.norm(vectors, axis=2) < cutoff).tolist():
            if i < j or (i == j and shift > (0, 0, 0)):
                first.append(i)
                second.append(j)
                shifts.append(shift)
    return first, second, shifts


def batch_of(systems: list[Charges], cutoffs: list[float], extra: int = 0, junk: float = 0.0) -> Batch:
    """Pad systems to one batch with pair lists to a cutoff each; padding stands at `junk`."""
    n_slots = max(len(system.charges) for system in systems) + extra
    shape = (len(systems), n_slots)
    charges = torch.zeros(shape, dtype=torch.float64)
    coord = torch.full((*shape, 3), junk, dtype=torch.float64)
    numbers = torch.zeros(shape, dtype=torch.int64)
    first: list[int] = []
    second: list[int] = []
    shifts: list[tuple[int, ...]] = []
    for b, (system, cutoff) in enumerate(zip(systems, cutoffs, strict=True)):
        n = len(system.charges)
        charges[b, :n] = torch.from_numpy(system.charges)
        coord[b, :n] = torch.from_numpy(system.positions)
        numbers[b, :n] = 1
        i, j, s = half_pairs(system.positions, system.cell, cutoff)
        first += [b * n_slots + k for k in i]
        second += [b * n_slots + k for k in j]
        shifts += s
    zero = torch.zeros(shape[0], dtype=torch.float64)
    lists = NeighborLists(
        torch.from_numpy(np.array([system.cell for system in systems])),
        torch.full((*shape, 1), -1, dtype=torch.int64),
        torch.zeros((*shape, 1, 3), dtype=torch.int64),
        torch.tensor(first, dtype=torch.int64),
        torch.tensor(second, dtype=torch.int64),
        torch.tensor(shifts, dtype=torch.int64).reshape(-1, 3),
    )
    return Batch(charges, Molecules(coord, numbers, zero, zero + 1.0, torch.zeros_like(numbers[:, 0])), lists)


def no_pairs() -> Pairs:
    """What stands in place of the network's pairs where a method must not look at them."""
    nothing = torch.full((0,), float("nan"), dtype=torch.float64)
    return Pairs(nothing, nothing, nothing.to(torch.bool), None)


def random_cell(seed: int, n: int, volume: float, charge: float = 0.0, skew: float = 0.4) -> Charges:
    """Random charges, no two closer than 1 Å, in a random triclinic cell; odd seeds give left-handed cells."""
    generator = np.random.default_rng(seed)
    cell = np.eye(3) + skew * generator.uniform(-1.0, 1.0, (3, 3))
    cell *= (volume / abs(np.linalg.det(cell))) ** (1.0 / 3.0)
    if seed % 2:
        cell[0] *= -1.0
    positions: list[Array] = []
    images = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ cell
    while len(positions) < n:
        new = generator.uniform(-0.5, 1.5, 3) @ cell
        others = np.array([*positions, new + 1e3]) - new
        others -= np.round(others @ np.linalg.inv(cell)) @ cell
        if np.linalg.norm(others[:, None] + images, axis=2)[:-1].min(initial=9.0) > 1.0:
            positions.append(new)
    charges = generator.uniform(-1.0, 1.0, n)
    return Charges(charges + (charge - charges.sum()) / n, np.array(positions), cell)


def direct_sum(system: Charges) -> float:
    """Pairs of a molecule one by one: eV."""
    energy = 0.0
    for i, j in itertools.combinations(range(len(system.charges)), 2):
        r = float(np.linalg.norm(system.positions[i] - system.positions[j]))
        energy += KE * float(system.charges[i] * system.charges[j]) / r
    return energy
